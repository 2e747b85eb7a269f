"""What a trigger is, in two shapes: one that is read and one that is called.

Both end in `await emit(...)`, which returns only when the events are on disk; only then may a
trigger acknowledge (answer 202, commit an offset, mark a file as seen, store a tick). A trigger is
a frozen value: equal triggers on several flows are one trigger feeding them all. Its `name` (kind
and natural key) is the key of its positions and metrics and outlives changed settings.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol, runtime_checkable

from .event import Event
from .run import Outcome
from .units import utc_now

# Receipt, Inbound and Reply are not frozen: each request makes one of each, and writing the fields
# of a frozen one measured more than twice as dear. Nobody changes them.


@dataclass(slots=True, kw_only=True)
class Receipt:
    """What became of one emitted event, now that it is on disk.

    `event` is the accepted event's id (the first delivery's, for a duplicate) and `runs` the runs
    it started; `ended` is true when the first of them has ended already: it is a dead letter, or a
    rule has refused it. Where `unique` has refused a run, `runs` has the first one. `conflict` is
    true when the same id came with other content: nothing was stored but the decision. `windows`
    maps a flow to the window that the event has joined; its run may not exist yet. `refusals`
    maps a flow to why it refuses the data; when `stored` is false every flow refused and nothing
    was kept.
    """

    event: str
    runs: tuple[str, ...] = ()
    ended: bool = False
    duplicate: bool = False
    conflict: bool = False
    stored: bool = True
    windows: Mapping[str, str] = field(default_factory=dict)
    refusals: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Backlog:
    """The journaled events of a trigger whose runs have not begun, and those that came after them.

    `waiting` maps the name that the source has for an event to its seq, in order of arrival;
    `begun` are the events after the first of these whose runs have begun or ended.
    """

    waiting: Mapping[str, int]
    begun: Sequence[str]


class HandBack(Protocol):
    """Hands events whose runs have not begun back to their source."""

    async def backlog(self) -> Backlog:
        """Return the events that may be handed back, and the later ones that have begun."""

    async def withdraw(self, seqs: Sequence[int], positions: Mapping[str, str | None]) -> None:
        """Forget these events and their runs, and move the positions in front of them.

        Raises what an emit does, having changed nothing.
        """


class Emitter(Protocol):
    """What a trigger is handed: the way into the journal and the things it may ask."""

    async def __call__(
        self,
        events: Sequence[Event],
        positions: Mapping[str, str | None] = ...,
        *,
        after: Awaitable[object] | None = ...,
    ) -> Sequence[Receipt]:
        """Store events and positions in one transaction; return when they are on disk.

        `positions` maps a partition (a Kafka partition, a file, a timer) to its new value; None
        forgets it. Positions may move without events. `after` is an emit still on its way: this
        one is routed meanwhile, stored behind it, and raises what it raises. Returns what became of
        each event; of `EventColumns` it may be one receipt for all. Raises `Overloaded`,
        `JournalFull` or `JournalBroken`, having stored nothing: do not acknowledge.
        """

    async def credit(self) -> int:
        """Back-pressure: return how many events the trigger should fetch next, from 1 to 128.

        Waits up to 0.2 s while runs make progress. For a trigger whose source keeps unread events:
        a run that starts at once costs less than one that is queued first. Emitting more is safe.
        """

    async def positions(self) -> dict[str, str]:
        """Return every stored position of this trigger."""

    @property
    def keeps_order(self) -> bool:
        """Whether a flow has `ordered_by`: then what waits is given back with its partition."""

    def handing_back(self) -> AbstractAsyncContextManager[HandBack]:
        """Start nothing of this trigger's flows inside, while what waits is given back."""

    async def until_ended(self, partitions: Sequence[str], seconds: float) -> None:
        """Wait, so long and within the grace, until no run of these partitions is under way.

        Runs that sleep, wait for something or will be retried later do not count. An event names
        its partition in the extension `partition`.
        """

    async def result(self, receipt: Receipt, timeout_seconds: float) -> Outcome | None:
        """Wait for the outcome of the first run of a receipt just returned; None at the timeout.

        Raises `Overloaded` past the bound on those who wait.
        """

    def now(self) -> datetime:
        """Return the wall clock (UTC, injected)."""

    def up(self) -> None:
        """Report that the trigger is watching (`turnout_trigger_up 1`)."""

    def down(self, reason: str) -> None:
        """Report that the trigger cannot watch now, and why (`turnout_trigger_up 0`, `/readyz`)."""

    def up_to_date(self, seconds_ago: float = 0) -> None:
        """Report that all that the source held so many seconds ago has been emitted.

        A trigger that does so has `tells_progress = True`. What waits for the absence of one of its
        events then waits for this.
        """

    def late(self, seconds: float) -> None:
        """Report how long after it was due an event was stored: `turnout_schedule_late_seconds`."""

    def lag(self, partition: str, count: float) -> None:
        """Report how much of `partition` is not read yet."""

    @property
    def lags(self) -> Mapping[str, float]:
        """What was last reported of each partition, also before the trigger was restarted."""

    def reject(self, result: str, count: int = 1) -> None:
        """Count input that became no event: `turnout_events_total{trigger,result}`."""

    def show(self, figure: str, value: float) -> None:
        """Show a figure of this trigger's own, such as `rebalances`, to operators."""

    def connection(self, kind: str) -> Mapping[str, Any]:
        """Return what the settings say for triggers of this kind: a client's options (`kafka`)."""


class Trigger(Protocol):
    """What every trigger has."""

    @property
    def name(self) -> str:
        """Kind and natural key, such as `webhook:/orders`; unique in a project."""

    @property
    def kind(self) -> str:
        """The module's word: `webhook`, `files`, `cron`, `every`, `at`, `event`."""

    def check(self) -> None:
        """Raise `SetupError` for settings that cannot work; opens nothing, waits for nothing."""


@runtime_checkable
class ReadTrigger(Trigger, Protocol):
    """A trigger that reads its source until cancelled."""

    async def run(self, emit: Emitter) -> None:
        """Watch and emit until cancelled; must stop within a second of a cancel.

        An exception ends this run of the trigger only: the supervisor reports it and runs the
        trigger again with backoff, so it resumes from `emit.positions()`.
        """


@dataclass(slots=True, kw_only=True)
class Inbound:
    """A request as a called trigger sees it: raw bytes, headers by lower-case name, path parts.

    `headers` keeps every value of a repeated header, in order, as bytes.
    """

    method: str
    path: str
    params: Mapping[str, str]
    query: bytes
    headers: Mapping[str, Sequence[bytes]]
    body: bytes
    client: str | None
    received_at: datetime


@dataclass(slots=True, kw_only=True)
class Reply:
    """What to answer: a status, a JSON body (already encoded) and extra headers.

    `waited`: for the result of a run, so that its time says nothing about how fast turnout accepts.
    """

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Sequence[tuple[str, str]] = ()
    waited: bool = False


@runtime_checkable
class CalledTrigger(Trigger, Protocol):
    """A trigger somebody calls over HTTP: a route whose endpoint awaits `emit`."""

    @property
    def route(self) -> str:
        """The path under `/hooks`, with `{name}` for one segment: `/t/{tenant}/ingest`."""

    @property
    def max_body_bytes(self) -> int | None:
        """The route's own body limit, or None for the service's."""

    async def receive(self, inbound: Inbound, emit: Emitter) -> Reply:
        """Verify, decode, emit, and only then answer 202; bad input is a 4xx, no exception."""


@runtime_checkable
class StartsOnType(Trigger, Protocol):
    """A trigger with nothing to watch: emitted events of one CloudEvents type start its flows."""

    @property
    def event_type(self) -> str:
        """The CloudEvents `type`, or pattern of types, that starts flows with this trigger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seek:
    """Where an operator wants a trigger to read on.

    `to` is `start`, `end`, an offset or an RFC 3339 instant (an operator's `now` is one by then);
    `partition` one partition, or None for all. `rerun` allows going back, which makes new events
    of what was accepted before. `asked_at` is what the clock shows.
    """

    to: str
    partition: str | None = None
    rerun: bool = False
    asked_at: datetime = field(default_factory=utc_now)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeekPlan:
    """What a seek does: new positions (as stored), and a sentence for each partition."""

    positions: Mapping[str, str | None]
    sentences: Sequence[str]


@runtime_checkable
class Seeker(Protocol):
    """Moves a trigger's position for an operator (`turnout trigger seek`).

    The trigger is stopped meanwhile, and reads its stored positions when it starts again.
    """

    async def plan(
        self, seek: Seek, positions: Mapping[str, str], connection: Mapping[str, Any]
    ) -> SeekPlan:
        """Say what `seek` comes to, changing nothing; raises `Refused` for what cannot be."""


@runtime_checkable
class AfterRun(Protocol):
    """Acts once the last run of an event has ended: moves a file, publishes a dead letter."""

    async def ended(self, event: Event, failure: str | None, emit: Emitter) -> Event | None:
        """Act on an ended event; called at least once, so repeatable.

        `failure` describes the first run that did not succeed, None if all did. Raises `TooEarly`
        to be called again. Returns the event to store from now on (a new path), None if unchanged.
        """


@runtime_checkable
class Scheduled(Protocol):
    """Knows when it emits its next event by itself, as a timer does."""

    def next_at(self, now: datetime, positions: Mapping[str, str]) -> datetime | None:
        """Return when that is, None if never again; `positions` are those that are stored."""


@dataclass(frozen=True, slots=True)
class TriggerParts:
    """The optional parts of a trigger, None for each that it does not have.

    `unmatched_sample`: of the events that no flow matches, only one in this many is stored, to show
    its decision, and the others are counted; None stores them all. `dedupe` is how long the ids of
    its events are remembered, None for as long as the setting says. `tells_progress`: it reports
    up to when all that its source held has been emitted (`Emitter.up_to_date`).
    """

    seeker: Seeker | None
    after_run: AfterRun | None
    scheduled: Scheduled | None
    unmatched_sample: int | None
    dedupe: timedelta | None
    tells_progress: bool = False


def parts_of(trigger: Trigger) -> TriggerParts:
    """Return the optional parts of a trigger.

    An attribute of the part's name holds it: an object, or None where the settings ask for none.
    Without that attribute, a trigger that has the part's method is that part itself.
    """
    window = getattr(trigger, "dedupe", None)
    return TriggerParts(
        seeker=getattr(trigger, "seeker", trigger if isinstance(trigger, Seeker) else None),
        after_run=getattr(trigger, "after_run", trigger if isinstance(trigger, AfterRun) else None),
        scheduled=trigger if isinstance(trigger, Scheduled) else None,
        unmatched_sample=getattr(trigger, "unmatched_sample", None),
        dedupe=window if isinstance(window, timedelta) else None,
        tells_progress=bool(getattr(trigger, "tells_progress", False)),
    )
