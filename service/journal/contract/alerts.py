"""What alerts need of a journal: failures are counted as they are recorded, the rest is called."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from turnout.service.domain.alerts import AlertRule
from turnout.service.journal.records import (
    Ended,
    Expectation,
    FlowAbout,
    LateRuns,
    NewMessage,
    StoredAlert,
    Success,
    Taken,
)

from .writing import Writable


class AlertReads(Protocol):
    """What can be read of alerts."""

    async def alerts(self, *, ended: bool = False, limit: int = 1000) -> list[StoredAlert]:
        """Return the open alerts, or with `ended` also those that have ended; the newest first."""

    async def pending_messages(self) -> dict[str, int]:
        """Return how many messages wait to be sent, by channel."""

    async def flows_about(self) -> dict[str, FlowAbout]:
        """Return what flows say of themselves, by name; those that say nothing are left out."""


class Alerts(AlertReads, Writable, Protocol):
    """Alerts: an episode for each flow, rule and cause, and the messages about it."""

    def count_failures(self, flows: Collection[str], counted: Callable[[], object]) -> None:
        """Count final failures of these flows from now on, each in the write that records it.

        An alert is opened for each cause; a flow has at most 100 open ones, and further causes
        count as one. `counted` is called on the loop after a commit that may have counted some.
        """

    async def raise_alert(
        self,
        flow: str,
        rule: AlertRule,
        *,
        now: datetime,
        add: int = 1,
        at_least: int = 0,
        run_id: str | None = None,
        detail: str = "",
        seen_at: datetime | None = None,
    ) -> None:
        """Open the alert of a rule, or add to its count, which is `at_least` so much then.

        `seen_at` is noted with the expectation of the same rule, in one write.
        """

    async def tell(
        self,
        alert: StoredAlert,
        messages: Sequence[NewMessage],
        *,
        now: datetime,
        ended: Ended | None = None,
    ) -> bool:
        """Note that people are told of an alert as it is, with the messages, or end it.

        False, and nothing is written, if the alert was told of or has ended since it was read; an
        alert that counts more meanwhile does not end.
        """

    async def open_alert(self, alert: int) -> StoredAlert:
        """Return an open alert. Raises `NotFound`, `Refused`."""

    async def mute_alert(
        self, alert: int, *, until: datetime, by: str = "", note: str = ""
    ) -> StoredAlert:
        """Tell no more of an open alert until an instant. Raises `NotFound`, `Refused`."""

    async def take_message(
        self, channel: str, *, now: datetime, until: datetime, most: int, since: datetime
    ) -> Taken:
        """Claim the next message of a channel until an instant, unless `most` were sent `since`.

        Then all that wait are held, and make one summary when it may be sent. Recoveries that wait
        make one summary at once.
        """

    async def message_sent(self, seq: int, *, now: datetime) -> None:
        """Note that a message was sent."""

    async def message_failed(self, seq: int, *, error: str, due_at: datetime | None) -> None:
        """Note why a message was not sent, and when to try again; None drops it."""

    async def release_messages(self, channels: Collection[str], *, now: datetime) -> int:
        """At start: end the claims of the process before, and drop what no channel takes."""

    async def withdraw_alerts(
        self, kept: Mapping[str, Collection[AlertRule]], *, now: datetime
    ) -> int:
        """End alerts and expectations whose rule their flow no longer has, without a message."""

    async def expectations(self) -> dict[tuple[str, str], Expectation]:
        """Return what is expected of flows, by flow and rule."""

    async def expect(
        self, flow: str, rule: AlertRule, *, since: datetime, seen_at: datetime
    ) -> None:
        """Note an expectation, or the last instant that was looked at for it."""

    async def successes(self, flow: str, *, limit: int = 100) -> list[Success]:
        """Return the runs of a flow that have succeeded, those accepted last first."""

    async def late_runs(self, flow: str, *, before: datetime) -> LateRuns:
        """Return the first unfinished run of a flow, and how many were due before an instant.

        A scheduled run is due when it is to start, another one when it was accepted, or queued
        again. Reads all unfinished runs of the flow: 100,000 take about 50 ms.
        """

    async def describe_flows(self, flows: Mapping[str, FlowAbout]) -> None:
        """Note what these flows say of themselves; others keep what they have said."""
