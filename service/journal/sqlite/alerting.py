"""The part of the journal that alerts use: `Alerts` in the contract.

Each method is one job for the writing thread, or a read. Not here: what it writes (`alerts`,
`alert_messages`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import apsw

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

from . import alert_messages, alerts
from .append import Intake
from .calls import Calls
from .counters import RunCounters
from .pruning import RunTotals
from .statements import load
from .values import dump, dump_list, instant, micros, storable

_SQL = load("alerts")


class Alerting(Calls):
    """Keeps alerts, and the messages about them."""

    _intake: Intake
    _counted: RunTotals

    def count_failures(self, flows: Collection[str], counted: Callable[[], object]) -> None:
        """Count final failures of these flows from now on; see the contract."""
        self._intake.failures.flows = frozenset(flows)
        self._counted.on_dead_letters = counted if flows else None

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
        """Open the alert of a rule, or add to its count."""
        seen = None if seen_at is None else micros(seen_at)
        await self._call(
            lambda connection, _counters: alerts.raise_alert(
                connection, flow, rule, at=micros(now), add=add, at_least=at_least, run_id=run_id,
                detail=detail, seen_at=seen,
            )
        )  # fmt: skip

    async def tell(
        self,
        alert: StoredAlert,
        messages: Sequence[NewMessage],
        *,
        now: datetime,
        ended: Ended | None = None,
    ) -> bool:
        """Note that people are told of an alert as it is, with the messages, or end it."""
        told: bool = await self._call(
            lambda connection, _counters: alerts.tell(
                connection, alert, messages, micros(now), ended
            )
        )
        return told

    async def open_alert(self, alert: int) -> StoredAlert:
        """Return an open alert. Raises `NotFound`, `Refused`."""
        return await self.read(lambda connection: alerts.open_alert(connection, alert))

    async def mute_alert(
        self, alert: int, *, until: datetime, by: str = "", note: str = ""
    ) -> StoredAlert:
        """Tell no more of an open alert until an instant. Raises `NotFound`, `Refused`."""
        muted: StoredAlert = await self._call(
            lambda connection, _counters: alerts.mute(connection, alert, until, by, note)
        )
        return muted

    async def take_message(
        self, channel: str, *, now: datetime, until: datetime, most: int, since: datetime
    ) -> Taken:
        """Claim the next message of a channel until an instant, unless `most` were sent `since`."""
        taken: Taken = await self._call(
            lambda connection, _counters: alert_messages.take(
                connection, channel, now=now, until=until, most=most, since=since
            )
        )
        return taken

    async def message_sent(self, seq: int, *, now: datetime) -> None:
        """Note that a message was sent."""
        await self._call(lambda connection, _counters: alert_messages.sent(connection, seq, now))

    async def message_failed(self, seq: int, *, error: str, due_at: datetime | None) -> None:
        """Note why a message was not sent, and when to try again; None drops it."""
        words = storable(error)
        await self._call(
            lambda connection, _counters: alert_messages.put_off(connection, seq, words, due_at)
        )

    async def release_messages(self, channels: Collection[str], *, now: datetime) -> int:
        """End the claims of the process before, and drop what no channel takes."""

        def write(connection: apsw.Connection, _counters: RunCounters) -> int:
            connection.execute(_SQL["release"])
            connection.execute(_SQL["drop_unknown"], (dump_list(channels), micros(now)))
            return connection.changes()

        dropped: int = await self._call(write)
        return dropped

    async def withdraw_alerts(
        self, kept: Mapping[str, Collection[AlertRule]], *, now: datetime
    ) -> int:
        """End alerts and expectations whose rule their flow no longer has, without a message."""
        pairs = dump([(flow, rule.value) for flow, rules in kept.items() for rule in rules])

        def write(connection: apsw.Connection, _counters: RunCounters) -> int:
            connection.execute(_SQL["withdraw"], (pairs, micros(now)))
            ended = connection.changes()
            connection.execute(_SQL["forget_expectations"], (pairs,))
            return ended

        withdrawn: int = await self._call(write)
        return withdrawn

    async def expectations(self) -> dict[tuple[str, str], Expectation]:
        """Return what is expected of flows, by flow and rule."""
        rows: list[Any] = await self.read(
            lambda connection: connection.execute(_SQL["expectations"]).fetchall()
        )
        return {
            (flow, rule): Expectation(instant(since), instant(seen))
            for flow, rule, since, seen in rows
        }

    async def expect(
        self, flow: str, rule: AlertRule, *, since: datetime, seen_at: datetime
    ) -> None:
        """Note an expectation, or the last instant that was looked at for it."""
        values = (flow, rule.value, micros(since), micros(seen_at))
        await self._call(lambda connection, _counters: connection.execute(_SQL["expect"], values))

    async def successes(self, flow: str, *, limit: int = 100) -> list[Success]:
        """Return the runs of a flow that have succeeded, those accepted last first."""
        return await self.read(lambda connection: alerts.successes(connection, flow, limit))

    async def late_runs(self, flow: str, *, before: datetime) -> LateRuns:
        """Return the first unfinished run of a flow, and how many were due before an instant."""
        at = micros(before)
        return await self.read(lambda connection: alerts.late_runs(connection, flow, at))

    async def describe_flows(self, flows: Mapping[str, FlowAbout]) -> None:
        """Note what these flows say of themselves; others keep what they have said."""
        known = await self.flows_about()
        changed = {
            name: about for name, about in flows.items() if about != known.get(name, FlowAbout())
        }
        if not changed:
            return

        def write(connection: apsw.Connection, _counters: RunCounters) -> None:
            connection.execute(_SQL["undescribe"], (dump_list(changed),))
            for name, about in changed.items():
                if about != FlowAbout():
                    row = (name, about.owner, dump_list(about.tags), about.description)
                    connection.execute(_SQL["describe"], row)

        await self._call(write)

    async def prune_alerts(self, *, ended_before: datetime, limit: int) -> int:
        """Delete alerts and messages that ended before; returns rows."""
        deleted: int = await self._call(
            lambda connection, _counters: alert_messages.prune(
                connection, micros(ended_before), limit
            )
        )
        return deleted
