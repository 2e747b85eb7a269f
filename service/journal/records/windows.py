"""Windows: what joins one, what fires, and what is read of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, NamedTuple

from turnout.service.domain.event import Event
from turnout.service.domain.run import Keys, Run
from turnout.service.domain.windows.firing import Firing
from turnout.service.domain.windows.window import WindowSettings

from .claims import Queued
from .entries import NOTHING, Decision, NewRun
from .reads import PastRun

WindowState = Literal["open", "fired", "expired", "dropped", "closed"]


@dataclass(slots=True, kw_only=True)
class NewMember:
    """An event that is offered to a window of a flow; the rule says whether it joins.

    `settings` are those of the flow today, `part` is the name of the trigger by which it came.
    `key` tells windows apart: empty for a flow without `per=`, None for an event without a key.
    `order_key`, `keys` and `priority` are what the rules of the flow say of the event. `firing` is
    what a run is made of if the window fires now, `on_timeout` the same of the flow that gets the
    members if it expires. `prepared` are runs that hold a slot already: one is the run of a window
    that opens and fires in the same `append`.
    """

    flow: str
    settings: WindowSettings
    part: str
    key: str | None
    firing: Firing
    on_timeout: Firing | None = None
    order_key: str | None = None
    keys: Keys | None = None
    priority: int | None = None
    prepared: Sequence[NewRun] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FiredRun:
    """The run of a window that has fired; `prepared` is the run that holds a slot, if it was used.

    `events` are the seqs of the members that it is called with, of a prepared one.
    """

    queued: Queued
    window_seq: int
    prepared: NewRun | None = None
    events: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Told:
    """Which windows of a flow may close at their deadline: an event would have been noticed.

    Those that were due up to `to`, and those that were opened since `since`.
    """

    to: datetime
    since: datetime | None = None


@dataclass(slots=True, kw_only=True)
class ClosedWindows:
    """What became of windows that were due, or that an operator has closed.

    `fired` are the runs that are queued now; `cancelled`, `skipped` and `decided` as in `Appended`.
    `next_due_at` is when the next window is due; `more` says that others are due already. `held`
    are flows with windows that are due, and may not close yet.
    """

    fired: Sequence[FiredRun] = ()
    cancelled: Sequence[Run] = ()
    skipped: Sequence[Run] = ()
    decided: Sequence[Decision] = ()
    refused: Mapping[str, Decision] = field(default_factory=lambda: NOTHING)
    runs: Sequence[str] = ()
    next_due_at: datetime | None = None
    more: bool = False
    held: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMembers:
    """The members of a windowed run: those it is called with, and how many there are in all.

    `seqs` are the seqs of the events, and `events` the events themselves; None if they are read
    when the run is called. `indexes` their indexes among those that the first attempt was
    called with. `round` counts how often an attempt has asked for some of them again
    (`Retry(items=…)`).
    """

    window_seq: int
    events: Sequence[Event] | None
    count: int
    seqs: Sequence[int]
    indexes: Sequence[int]
    round: int = 0

    def only(self, left: Sequence[int], round_: int) -> RunMembers:
        """Return those at some of the indexes, for a later round."""
        return replace(
            self,
            events=None if self.events is None else [self.events[index] for index in left],
            seqs=[self.seqs[index] for index in left],
            indexes=left,
            round=round_,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWindow:
    """A window as it is listed; `remaining_seconds` of a suspended one, which has no deadline.

    `run` is the id of the first run that it has made, or will make.
    """

    seq: int
    id: str
    flow: str
    key: str
    settings: WindowSettings
    state: WindowState
    opened_at: datetime
    due_at: datetime | None
    remaining_seconds: float | None
    closed_at: datetime | None
    members: int
    bytes: int
    run: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowMember:
    """A member of a window as it is listed: its event, its part, and when it was accepted."""

    position: int
    event_id: str
    event_source: str
    trigger: str
    part: int
    at: datetime


class PastMember(NamedTuple):
    """A member of a window, with what the rules of its flow said of it when it came."""

    event_seq: int
    event_id: str
    trigger: str
    part: int
    at: datetime
    bytes: int
    keys: Keys | None
    order_key: str | None
    priority: int | None


class PastWindow(NamedTuple):
    """A window as it went, up to an instant.

    `run` is the run that it has made, `decisions` are those about its first event. `by_hand`: an
    operator has fired or dropped it.
    """

    seq: int
    id: str
    key: str
    settings: WindowSettings
    state: WindowState
    opened_at: datetime
    closed_at: datetime | None
    members: int
    run: PastRun | None
    decisions: Sequence[Mapping[str, Any]]
    by_hand: bool
