"""The report of a backtest: what a flow did, what it would have done, and how they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from turnout.service.domain.decisions import Reason
from turnout.service.operate.documents import instant

MOST_SHOWN = 1_000
"""The most differences, and the most windows, that are told one by one."""

MOST_EVENTS = 100
"""The most events of a window that are named."""

STARTED, FAILED, NOT_ASKED, OPEN = "started", "failed", "not_asked", "open"
"""What an event came to, beside the reasons of decisions: a run, a dead letter, nothing at all, or
a window that is still open."""


class KeepTimes(NamedTuple):
    """For how long events are kept that started nothing, and those whose runs have ended."""

    unmatched: timedelta
    finished: timedelta


@dataclass(slots=True)
class Asked:
    """An event that the flow was asked about; `would` may still change while its run lives."""

    event: str
    trigger: str
    accepted_at: datetime
    did: str
    would: str
    why: str = ""

    @property
    def agrees(self) -> bool:
        """Whether it would come to what it did; a shadow did nothing, and said what it would."""
        shadowed = self.did == Reason.SHADOW and self.would in (STARTED, FAILED)
        return shadowed or self.did == self.would

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON shows it; `why` says the reason of what it would come to."""
        return {
            "event": self.event,
            "trigger": self.trigger,
            "accepted_at": instant(self.accepted_at),
            "did": self.did,
            "would": self.would,
            "why": self.why,
        }


@dataclass(slots=True)
class Seen:
    """What was seen of a trigger: how many events, since when, and what could not be seen."""

    events: int = 0
    since: datetime | None = None
    did: Counter[str] = field(default_factory=Counter)
    would: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Closing:
    """What a window came to: when, how, and with which events; an open one has no instant."""

    key: str
    opened_at: datetime
    at: datetime | None
    outcome: str
    count: int
    events: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON shows it."""
        return {
            "key": self.key,
            "opened_at": instant(self.opened_at),
            "at": instant(self.at),
            "outcome": self.outcome,
            "count": self.count,
            "events": list(self.events),
        }


@dataclass(slots=True)
class WindowDifference:
    """A window that would have come to something else than it did; None: there was no such one.

    `window` is the seq of the real one.
    """

    did: Closing | None
    would: Closing | None
    why: str
    window: int | None = None

    @property
    def since(self) -> datetime:
        """When the first of the two opened."""
        both = (each.opened_at for each in (self.did, self.would) if each is not None)
        return min(both)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON shows it."""
        return {
            "did": None if self.did is None else self.did.as_dict(),
            "would": None if self.would is None else self.would.as_dict(),
            "why": self.why,
        }


@dataclass(slots=True)
class WindowReport:
    """The windows of a flow: what they came to, what they would have, and how many runs it made."""

    kind: str
    did: Counter[str] = field(default_factory=Counter)
    would: Counter[str] = field(default_factory=Counter)
    runs_did: int = 0
    runs_would: int = 0
    shown: list[Closing] = field(default_factory=list)
    differences: list[WindowDifference] = field(default_factory=list)
    different: int = 0

    def add(self, closing: Closing) -> None:
        """Count what a window would have come to."""
        self.would[closing.outcome] += 1
        if len(self.shown) < MOST_SHOWN:
            self.shown.append(closing)

    def differ(self, difference: WindowDifference) -> None:
        """Count a difference."""
        self.different += 1
        if len(self.differences) < MOST_SHOWN:
            self.differences.append(difference)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON shows it."""
        differences = sorted(self.differences, key=lambda each: each.since)
        return {
            "kind": self.kind,
            "did": dict(self.did),
            "would": dict(self.would),
            "runs": {"did": self.runs_did, "would": self.runs_would},
            "closed": [each.as_dict() for each in self.shown],
            "different": self.different,
            "differences": [each.as_dict() for each in differences],
        }


@dataclass(slots=True)
class Report:
    """What a flow did in a period, and what it would have done; `windows` of one that has some."""

    flow: str
    since: datetime
    until: datetime
    code_version: str
    events: int = 0
    did: Counter[str] = field(default_factory=Counter)
    would: Counter[str] = field(default_factory=Counter)
    triggers: dict[str, Seen] = field(default_factory=dict)
    differences: list[Asked] = field(default_factory=list)
    different: int = 0
    windows: WindowReport | None = None
    notes: list[str] = field(default_factory=list)

    def add(self, asked: Asked) -> None:
        """Count an event of which it is clear what it would have come to."""
        self.events += 1
        self.did[asked.did] += 1
        self.would[asked.would] += 1
        seen = self.triggers.get(asked.trigger)
        if seen is None:
            seen = self.triggers[asked.trigger] = Seen()
        seen.events += 1
        seen.did[asked.did] += 1
        seen.would[asked.would] += 1
        seen.since = min(seen.since or asked.accepted_at, asked.accepted_at)
        if not asked.agrees:
            self.different += 1
            if len(self.differences) < MOST_SHOWN:
                self.differences.append(asked)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON shows it."""
        differences = sorted(self.differences, key=lambda each: each.accepted_at)
        return {
            "flow": self.flow,
            "since": instant(self.since),
            "until": instant(self.until),
            "code_version": self.code_version,
            "events": self.events,
            "did": dict(self.did),
            "would": dict(self.would),
            "different": self.different,
            "triggers": [
                {
                    "name": name,
                    "events": seen.events,
                    "since": instant(seen.since),
                    "did": dict(seen.did),
                    "would": dict(seen.would),
                    "notes": seen.notes,
                }
                for name, seen in sorted(self.triggers.items())
            ],
            "windows": None if self.windows is None else self.windows.as_dict(),
            "notes": self.notes,
            "differences": [each.as_dict() for each in differences],
        }
