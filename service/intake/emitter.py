"""The way in: `emit` routes events, and submits them with the runs they start.

One emitter a trigger, and one session of it for each time the trigger runs. `emit` returns when the
events are on disk; a caller that is cancelled while waiting loses the answer, never the event. Not
here: routing (`router`), writing and starting (`submit`), what operators see (`status`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from copy import copy
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol

from turnout.service.dispatch.dispatcher import Dispatcher
from turnout.service.dispatch.waiters import Waiters
from turnout.service.domain.decisions import Reason
from turnout.service.domain.errors import JournalError
from turnout.service.domain.event import NEVER, Event
from turnout.service.domain.event_columns import EventColumns
from turnout.service.domain.run import Outcome, RunState
from turnout.service.domain.trigger import Backlog, HandBack, Receipt, Trigger, parts_of
from turnout.service.journal.contract import Intake
from turnout.service.journal.records import NOTHING, Appended, Move, NewRun
from turnout.service.project import AnyFlow, Project
from turnout.service.telemetry.logs import get_logger
from turnout.service.telemetry.metrics import Metrics

from .awaited import Awaited
from .batch_fill import BatchFill
from .cancels import CancellingEvents
from .positions import SessionPositions
from .router import Routed, route, route_together
from .status import Status
from .submit import Submit

log = get_logger("turnout.intake")

FlowsOf = Callable[[Event], Sequence[AnyFlow]]

_LOOK_SECONDS = 0.1
_ANY = Event(id="", source="", type="", time=NEVER)


class HasProject(Protocol):
    """Whoever holds the current project."""

    project: Project


def fed_by(trigger: str, served: HasProject) -> FlowsOf:
    """Return the function that tells which flows a trigger feeds in the current project."""
    return lambda _event: served.project.feeds.get(trigger, ())


@dataclass(frozen=True, slots=True, kw_only=True)
class EmitterParts:
    """What all emitters of a process share.

    `event_ended` is called with the seq of an event all of whose runs ended when they were made;
    `connection` gives the options of a client by the kind of trigger.
    """

    journal: Intake
    dispatcher: Dispatcher
    submit: Submit
    awaited: Awaited
    cancelling: CancellingEvents
    waiters: Waiters
    metrics: Metrics
    now: Callable[[], datetime]
    wall: Callable[[], datetime]
    event_ended: Callable[[int], None]
    connection: Callable[[str], Mapping[str, Any]]
    grace: timedelta


class TriggerEmitter:
    """Implements `domain.trigger.Emitter` for one trigger."""

    def __init__(
        self, trigger: Trigger, flows: FlowsOf, shared: EmitterParts, *, tells_sender: bool = False
    ) -> None:
        self.trigger = trigger
        self.parts = parts_of(trigger)
        self.flows = flows
        self.status = status = Status(trigger.name, shared.metrics, now=shared.now)
        self.up, self.down, self.reject = status.up, status.down, status.reject
        self.lag, self.lags, self.show = status.lag, status.lags, status.show
        self.up_to_date, self.late = status.up_to_date, status.late
        self.now, self.connection = shared.wall, shared.connection
        self.acts_after_runs = self.parts.after_run is not None
        self._shared = shared
        self._current = self
        self._positions = SessionPositions()
        self._unmatched_sample = self.parts.unmatched_sample
        self._unmatched: Counter[str] = Counter()
        self._tells_sender = tells_sender  # of an event that every flow refuses, instead of storing
        self._latest: Sequence[NewRun] = ()  # of the latest event that started any
        self._backpressure = shared.dispatcher.backpressure()
        self._batches = BatchFill()
        self._accepted = shared.metrics.events.labels(trigger.name, "accepted")
        if self.parts.scheduled is not None:
            status.count_ticks()

    def session(self) -> TriggerEmitter:
        """Return the emitter for one run of the trigger; it knows the positions it reads and moves.

        An older session that still writes knows other ones, so nothing of it is stored any more.
        """
        made = copy(self)
        made._positions = SessionPositions()
        self._current = made
        return made

    @property
    def current(self) -> TriggerEmitter:
        """The latest session."""
        return self._current

    async def __call__(
        self,
        events: Sequence[Event],
        positions: Mapping[str, str | None] | None = None,
        *,
        after: Awaitable[object] | None = None,
    ) -> Sequence[Receipt]:
        """Store events and positions in one transaction; see `domain.trigger.Emitter`."""
        if not self.status.accepts:
            raise self.status.refusal(self.now())
        routed = self._route_all(events)
        if self._tells_sender and _is_refused(routed):
            self.reject("invalid", len(routed))
            return [
                Receipt(event=one.entry.event.id, stored=False, refusals=one.refusals)
                for one in routed
            ]
        if after is not None:
            await asyncio.shield(after)
        if positions and self._positions.unread:
            await self._read_positions()
        if self._unmatched_sample is not None:
            return await self._store_matched(routed, positions, self._unmatched_sample)
        return await self._submitted(routed, positions)

    async def forced(self, event: Event) -> Sequence[Receipt]:
        """Store an operator's event; its runs start past the mode of their flows."""
        if not self.status.accepts:
            raise self.status.refusal(self.now())
        routed = self._route(event)
        for run in routed.entry.runs:
            run.start_past_mode()
        return await self._submitted([routed], None)

    def _route_all(self, events: Sequence[Event]) -> list[Routed]:
        """Route events: columns as one entry if a flow collects all of them."""
        if isinstance(events, EventColumns) and events.data:  # not those that are submitted again
            flow = self._collecting(events)
            if flow is None:
                return [self._route(event) for event in events.decoded()]
            together = route_together(events, flow, after_run_action=self.acts_after_runs)
            if together is not None:
                return [together]
        return [self._route(event) for event in events]

    def _collecting(self, columns: EventColumns) -> AnyFlow | None:
        """Return the flow that collects these events, if they do nothing else."""
        name, flows = self.trigger.name, self.flows(_ANY)
        if columns.models[0].trigger != name:
            return None
        if self._shared.awaited.may_wake(name) or self._shared.cancelling.may_cancel(name):
            return None
        return flows[0] if len(flows) == 1 and flows[0].collects else None

    def _route(self, event: Event) -> Routed:
        if event.trigger != self.trigger.name:
            event = replace(event, trigger=self.trigger.name)
        routed = route(event, self.flows(event), after_run_action=self.acts_after_runs)
        self._shared.cancelling.add_to(routed.entry)
        self._shared.awaited.add_topics(routed.entry)
        return routed

    async def _store_matched(
        self, routed: list[Routed], positions: Mapping[str, str | None] | None, sample: int
    ) -> Sequence[Receipt]:
        """Store events that start runs; count unmatched ones and store one in `sample`."""
        unkept: dict[int, Reason] = {}
        for index, one in enumerate(routed):
            if one.entry.is_idle:
                reason = one.entry.decisions[0].reason
                self._unmatched[reason] += 1
                if self._unmatched[reason] % sample != 1:
                    unkept[index] = reason
        if not unkept:
            return await self._submitted(routed, positions)
        routable = [one for index, one in enumerate(routed) if index not in unkept]
        receipts = iter(await self._submitted(routable, positions))
        for reason, count in Counter(unkept.values()).items():
            self.reject(reason, count)
        for index in unkept:
            self._shared.submit.count(routed[index].entry.decisions)
        return [
            Receipt(event=one.entry.event.id, stored=False) if index in unkept else next(receipts)
            for index, one in enumerate(routed)
        ]

    def _submitted(
        self, routed: Sequence[Routed], positions: Mapping[str, str | None] | None
    ) -> asyncio.Future[list[Receipt]]:
        """Submit routed events; the future is done when they are on disk."""
        for one in routed:
            if one.runs:
                self._latest = one.entry.runs
            if one.entry.members:
                self._batches.submitted((one.entry,))
        moves = self._positions.move(positions) if positions else NOTHING
        write = partial(
            self._shared.journal.append,
            [one.entry for one in routed],
            trigger=self.trigger.name,
            positions=moves,
            dedupe=self.parts.dedupe,
        )
        return self._shared.submit(
            routed, write, self._receipt, partial(self._refused, routed, moves)
        )

    def _refused(
        self, routed: Sequence[Routed], moves: Mapping[str, Move], error: BaseException
    ) -> None:
        if moves:
            self._positions.refused(moves, error)
        self.reject("refused", sum(one.entry.count for one in routed))

    def _receipt(self, routed: Routed, stored: Appended, accepted_at: datetime) -> Receipt:
        runs = routed.entry.runs
        has_ended = bool(runs) and _has_ended(runs[0], stored)
        if stored.duplicate or stored.conflict:
            self.reject("conflict" if stored.conflict else "duplicate")
            if stored.conflict:
                _warn_of_conflict(routed.entry.event)
        else:
            if routed.entry.members:
                self._batches.joined(stored.deadline)
            self._accepted.inc(routed.entry.count)
            self.status.last_event_at = accepted_at
            if self.acts_after_runs and has_ended and _have_ended(runs, stored):
                self._shared.event_ended(stored.event_seq)
        return Receipt(
            event=stored.event,
            runs=stored.runs,
            ended=has_ended,
            duplicate=stored.duplicate,
            conflict=stored.conflict,
            windows=stored.windows,
            refusals=routed.refusals,
        )

    async def credit(self) -> int:
        """Return how many events to fetch next; see `Emitter.credit` in `domain/trigger.py`."""
        batches = self._batches
        if batches.flows:
            batches.serve(self.flows(_ANY))  # a reload may have turned a batch into single runs
        if not batches.flows:
            return await self._backpressure.credit([run.flow for run in self._latest])
        flows = [*batches.flows, *(run.flow for run in self._latest)]
        credit = await self._backpressure.credit(flows)
        return max(credit if self._latest else 0, batches.lacks(self.now()))

    async def positions(self) -> dict[str, str]:
        """Return every stored position of this trigger; from now on this session moves these."""
        stored = await self._shared.journal.positions(self.trigger.name)
        self._positions.read(stored)
        return stored

    async def _read_positions(self) -> None:
        """Read the positions of a session that writes before it has read them."""
        stored = await self._shared.journal.positions(self.trigger.name)
        if self._positions.unread:  # else another write of this session has read them meanwhile
            self._positions.read(stored)

    @property
    def keeps_order(self) -> bool:
        """Whether a flow of this trigger has `ordered_by`, and what waits may go elsewhere."""
        return not self.status.stays and bool(self._ordered())

    def _ordered(self) -> list[str]:
        return [flow.name for flow in self.flows(_ANY) if flow.ordered_by is not None]

    @asynccontextmanager
    async def handing_back(self) -> AsyncIterator[HandBack]:
        """Start nothing of this trigger's flows inside, while what waits is given back."""
        if self._positions.unread:
            await self._read_positions()
        with self._shared.dispatcher.changing([flow.name for flow in self.flows(_ANY)]):
            yield _HandBack(self._shared, self.trigger.name, self._ordered(), self._positions)

    async def until_ended(self, partitions: Sequence[str], seconds: float) -> None:
        """Wait, so long and within the grace, until no run of these partitions is under way."""
        seconds = min(seconds, self._shared.grace.total_seconds())
        end = self._shared.now() + timedelta(seconds=seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while await self._is_under_way(partitions, end):  # noqa: ASYNC110  the journal tells
                    await asyncio.sleep(_LOOK_SECONDS)

    async def _is_under_way(self, partitions: Sequence[str], end: datetime) -> bool:
        """Whether a run of these partitions runs, or will before `end`."""
        name, ordered = self.trigger.name, self._ordered()
        starting = [flow for flow in ordered if self._shared.dispatcher.starts(flow)]
        others = [flow for flow in ordered if flow not in starting]
        ask = self._shared.journal.is_under_way
        return (bool(starting) and await ask(name, starting, partitions, due_by=end)) or (
            bool(others) and await ask(name, others, partitions, due_by=None)
        )

    def result(
        self, receipt: Receipt, timeout_seconds: float
    ) -> Coroutine[Any, Any, Outcome | None]:
        """Wait for the first run's outcome; None at the timeout. Raises `Overloaded`."""
        is_new = not receipt.duplicate and not receipt.ended
        return self._shared.waiters.result(receipt.runs[0], timeout_seconds, is_new=is_new)


class _HandBack:
    """Implements `domain.trigger.HandBack`."""

    def __init__(
        self,
        shared: EmitterParts,
        trigger: str,
        flows: Sequence[str],
        positions: SessionPositions,
    ) -> None:
        self._shared = shared
        self._trigger = trigger
        self._flows = flows
        self._positions = positions

    async def backlog(self) -> Backlog:
        """Return what may be given back, and what behind the first of it has begun."""
        return await self._shared.journal.backlog(self._trigger, self._flows)

    async def withdraw(self, seqs: Sequence[int], positions: Mapping[str, str | None]) -> None:
        """Forget these events and their runs, and move the positions in front of them."""
        moves = self._positions.move(positions)
        try:
            await self._shared.journal.withdraw(
                seqs, trigger=self._trigger, positions=moves, now=self._shared.now()
            )
        except JournalError as error:
            self._positions.refused(moves, error)
            raise
        self._shared.dispatcher.recheck_due()  # a run may await one of them


def _is_refused(routed: Sequence[Routed]) -> bool:
    """Whether no flow can take the data of any of these events."""
    for one in routed:
        if not one.refused_by_all:
            return False
    return bool(routed)


def _has_ended(run: NewRun, stored: Appended) -> bool:
    """Whether a run has ended where it was stored: as a dead letter, or refused."""
    return run.state is RunState.FAILED or bool(stored.refused and run.id in stored.refused)


def _have_ended(runs: Sequence[NewRun], stored: Appended) -> bool:
    return all(_has_ended(run, stored) for run in runs)


def _warn_of_conflict(event: Event) -> None:
    """Log that an event was not stored, and where it is: nobody may be told otherwise."""
    log.warning(
        "event.conflict",
        trigger=event.trigger,
        event=event.id,
        source=event.source,
        record=event.extensions.get("kafkarecord"),
        path=None if event.path is None else str(event.path),
        bytes=len(event.body),
    )
