"""The way in: `emit` routes events, writes them with their runs, and starts what may start.

One emitter a trigger. `emit` returns when the events are on disk; a caller that is cancelled while
waiting loses the answer, never the event.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from turnout.service.dispatch.dispatcher import Dispatcher
from turnout.service.dispatch.waiters import Waiters
from turnout.service.domain.errors import JournalError, Overloaded, SetupError
from turnout.service.domain.event import NEVER, Event
from turnout.service.domain.run import Outcome, RunState
from turnout.service.domain.trigger import Backlog, HandBack, Receipt, Trigger, parts_of
from turnout.service.governance import secrets
from turnout.service.journal.contract import Journal
from turnout.service.journal.records import Appended, Entry
from turnout.service.project import AnyFlow
from turnout.service.telemetry.logs import get_logger
from turnout.service.telemetry.metrics import Metrics

from .router import Routed, route

OnEventEnded = Callable[[int], None]

log = get_logger("turnout.triggers")

_STARTING = "starting"
_LOOK_SECONDS = 0.1
_ANY = Event(id="", source="", type="", time=NEVER)


class TriggerEmitter:
    """Implements `domain.trigger.Emitter` for one trigger."""

    def __init__(
        self,
        trigger: Trigger,
        flows: Callable[[Event], Sequence[AnyFlow]],
        *,
        journal: Journal,
        dispatcher: Dispatcher,
        metrics: Metrics,
        waiters: Waiters,
        now: Callable[[], datetime],
        on_event_ended: OnEventEnded,
        connection: Callable[[str], Mapping[str, Any]] | None = None,
        add_topics: Callable[[Entry], bool] | None = None,
        grace: timedelta = timedelta(0),
        tells_sender: bool = False,
    ) -> None:
        self.trigger = trigger
        self.parts = parts_of(trigger)
        self.flows = flows
        self.problem: str | None = _STARTING
        self.last_error: str | None = None
        self.lags: dict[str, float] = {}
        self.figures: dict[str, float] = {}
        self.stays = False  # true while its positions are moved: accepted events run here
        self._journal = journal
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._waiters = waiters
        self._now = now
        self._on_event_ended = on_event_ended
        self._connection = connection
        self._add_topics = add_topics
        self._grace = grace
        self._unmatched_sample = self.parts.unmatched_sample
        self._unmatched: Counter[str] = Counter()
        self._tells_sender = tells_sender  # of an event that every flow refuses, instead of storing
        self.acts_after_runs = self.parts.after_run is not None
        self._latest: Sequence[AnyFlow] = ()  # the flows of the latest event
        self._backpressure = dispatcher.backpressure()
        self._closed: str | None = None
        self._paused = False
        self._pause_words = f"trigger {trigger.name!r} is paused"
        self._accepted = metrics.events.labels(trigger.name, "accepted")

    async def __call__(
        self,
        events: Sequence[Event],
        positions: Mapping[str, str | None] | None = None,
        *,
        after: Awaitable[object] | None = None,
    ) -> Sequence[Receipt]:
        """Store events and positions in one transaction; see `domain.trigger.Emitter`."""
        if self._closed is not None:
            raise Overloaded(self._closed)
        if self._paused:
            raise Overloaded(self._pause_words, retry_after_seconds=60)
        routed = [self._route(event) for event in events]
        if self._tells_sender and _is_refused(routed):
            self.reject("invalid", len(routed))
            return [
                Receipt(event=one.entry.event.id, stored=False, refusals=one.refusals)
                for one in routed
            ]
        if after is not None:
            await asyncio.shield(after)
        if self._unmatched_sample is not None:
            return await self._store_matched(routed, positions or {}, self._unmatched_sample)
        return await self._committed(routed, positions or {})

    def _route(self, event: Event) -> Routed:
        if event.trigger != self.trigger.name:
            event = replace(event, trigger=self.trigger.name)
        routed = route(event, self.flows(event), after_run_action=self.acts_after_runs)
        if self._add_topics is not None:
            self._add_topics(routed.entry)
        return routed

    async def _store_matched(
        self, routed: list[Routed], positions: Mapping[str, str | None], sample: int
    ) -> Sequence[Receipt]:
        """Store events that start runs; count unmatched ones and store one in `sample`."""
        unkept: dict[int, str] = {}
        for index, one in enumerate(routed):
            if not one.entry.runs and one.entry.awaited is None:
                verdict = one.entry.decisions[0].verdict
                self._unmatched[verdict] += 1
                if self._unmatched[verdict] % sample != 1:
                    unkept[index] = verdict
        if not unkept:
            return await self._committed(routed, positions)
        kept = [one for index, one in enumerate(routed) if index not in unkept]
        receipts = iter(await self._committed(kept, positions))
        for verdict, count in Counter(unkept.values()).items():
            self.reject(verdict, count)
        return [
            Receipt(event=one.entry.event.id, stored=False) if index in unkept else next(receipts)
            for index, one in enumerate(routed)
        ]

    def _committed(
        self, routed: Sequence[Routed], positions: Mapping[str, str | None]
    ) -> asyncio.Future[Sequence[Receipt]]:
        """Write routed events; the future is done when they are on disk and may start runs."""
        for one in routed:
            self._latest = one.flows or self._latest
            for run, flow in zip(one.entry.runs, one.flows, strict=True):
                self._dispatcher.reserve(run, flow)
        try:
            stored = self._journal.append(
                [one.entry for one in routed],
                trigger=self.trigger.name,
                positions=positions,
                now=self._now(),
            )
        except JournalError:
            self._refused(routed)
            raise
        answer: asyncio.Future[Sequence[Receipt]] = stored.get_loop().create_future()
        # A cancelled caller must not leave claimed runs that nobody starts.
        stored.add_done_callback(lambda stored: self._stored(routed, stored, answer))
        return answer

    def _stored(
        self,
        routed: Sequence[Routed],
        stored: asyncio.Future[list[Appended]],
        answer: asyncio.Future[Sequence[Receipt]],
    ) -> None:
        error = stored.exception()
        if error is not None:
            self._refused(routed)
            if not answer.done():
                answer.set_exception(error)
            return
        receipts, woken, now = [], False, self._now()
        for one, appended in zip(routed, stored.result(), strict=True):
            receipts.append(self._receipt(one, appended, now))
            woken = woken or bool(one.entry.topics)
        if woken:
            self._dispatcher.recheck_due()
        if not answer.done():
            answer.set_result(receipts)

    def _refused(self, routed: Sequence[Routed]) -> None:
        for one in routed:
            for run in one.entry.runs:
                self._dispatcher.unreserve(run)
        self.reject("refused", len(routed))

    def _receipt(self, routed: Routed, stored: Appended, now: datetime) -> Receipt:
        runs = routed.entry.runs
        if stored.duplicate or stored.conflict:
            for run in runs:
                self._dispatcher.unreserve(run)
            self.reject("conflict" if stored.conflict else "duplicate")
        else:
            self._accepted.inc()
            for run, event, arguments in zip(runs, routed.events, routed.arguments, strict=True):
                self._dispatcher.start_or_enqueue(run, event, stored, arguments, now)
            if self.acts_after_runs and runs and all(run.state is RunState.FAILED for run in runs):
                self._on_event_ended(stored.event_seq)
        return Receipt(
            event=stored.event,
            runs=stored.runs,
            ended=bool(runs) and runs[0].state is RunState.FAILED,
            duplicate=stored.duplicate,
            conflict=stored.conflict,
            refusals=routed.refusals,
        )

    def close(self, reason: str) -> None:
        """Accept nothing more; every `emit` from now on raises `Overloaded(reason)`."""
        self._closed = reason

    def retire(self) -> None:
        """Remove the metrics of a trigger that is no longer served."""
        with suppress(KeyError):
            self._metrics.trigger_up.remove(self.trigger.name)
        for partition in self.lags:
            with suppress(KeyError):
                self._metrics.trigger_lag.remove(self.trigger.name, partition)
        for figure in self.figures:
            with suppress(KeyError):
                self._metrics.trigger_figures.remove(self.trigger.name, figure)

    @property
    def paused(self) -> bool:
        """Whether an operator has paused the trigger; `problem` is not affected."""
        return self._paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._paused = paused
        self._show_up()

    async def credit(self) -> int:
        """Return how many events to fetch next; see `Emitter.credit` in `domain/trigger.py`."""
        return await self._backpressure.credit([flow.name for flow in self._latest])

    async def positions(self) -> dict[str, str]:
        """Return every stored position of this trigger."""
        return await self._journal.positions(self.trigger.name)

    @property
    def keeps_order(self) -> bool:
        """Whether a flow of this trigger has `ordered_by`, and what waits may go elsewhere."""
        return not self.stays and bool(self._ordered())

    def _ordered(self) -> list[str]:
        return [flow.name for flow in self.flows(_ANY) if flow.ordered_by is not None]

    @asynccontextmanager
    async def handing_back(self) -> AsyncIterator[HandBack]:
        """Start nothing of this trigger's flows inside, while what waits is given back."""
        with self._dispatcher.changing([flow.name for flow in self.flows(_ANY)]):
            yield _HandBack(self._journal, self.trigger.name, self._ordered())

    async def until_ended(self, partitions: Sequence[str], seconds: float) -> None:
        """Wait, so long and within the grace, until no run of these partitions is under way."""
        seconds = min(seconds, self._grace.total_seconds())
        end = self._now() + timedelta(seconds=seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while await self._is_under_way(partitions, end):  # noqa: ASYNC110  the journal tells
                    await asyncio.sleep(_LOOK_SECONDS)

    async def _is_under_way(self, partitions: Sequence[str], end: datetime) -> bool:
        """Whether a run of these partitions runs, or will before `end`."""
        name, ordered = self.trigger.name, self._ordered()
        starting = [flow for flow in ordered if self._dispatcher.starts(flow)]
        others = [flow for flow in ordered if flow not in starting]
        ask = self._journal.is_under_way
        return (bool(starting) and await ask(name, starting, partitions, due_by=end)) or (
            bool(others) and await ask(name, others, partitions, due_by=None)
        )

    def result(
        self, receipt: Receipt, timeout_seconds: float
    ) -> Coroutine[Any, Any, Outcome | None]:
        """Wait for the first run's outcome; None at the timeout. Raises `Overloaded`."""
        is_new = not receipt.duplicate and not receipt.ended
        return self._waiters.result(receipt.runs[0], timeout_seconds, is_new=is_new)

    def now(self) -> datetime:
        """Return the wall clock."""
        return self._now()

    def up(self) -> None:
        """Report that the trigger is watching."""
        if self.problem not in (None, _STARTING):
            log.info("trigger.up", trigger=self.trigger.name)
        self.problem = None
        self._show_up()

    def down(self, reason: str) -> None:
        """Report that the trigger cannot watch now, and why."""
        reason = secrets.mask(reason)  # /readyz and the API show it
        if reason == self._pause_words:
            return  # it is paused, which is no problem of the trigger
        if reason != self.problem:
            log.warning("trigger.down", trigger=self.trigger.name, error=reason)
        self.problem = self.last_error = reason
        self._show_up()

    def _show_up(self) -> None:
        watches = self.problem is None and not self._paused
        self._metrics.trigger_up.labels(self.trigger.name).set(watches)

    def lag(self, partition: str, count: float) -> None:
        """Report how much of `partition` is not read yet."""
        self.lags[partition] = count
        self._metrics.trigger_lag.labels(self.trigger.name, partition).set(count)

    def reject(self, result: str, count: int = 1) -> None:
        """Count input that became no event."""
        self._metrics.events.labels(self.trigger.name, result).inc(count)

    def show(self, figure: str, value: float) -> None:
        """Show a figure of this trigger's own to operators."""
        self.figures[figure] = value
        self._metrics.trigger_figures.labels(self.trigger.name, figure).set(value)

    def connection(self, kind: str) -> Mapping[str, Any]:
        """Return the options of the client for `kind`, from the settings."""
        if self._connection is None:
            raise SetupError(f"there are no connection settings for {kind!r} here")
        return self._connection(kind)


class _HandBack:
    """Implements `domain.trigger.HandBack`."""

    def __init__(self, journal: Journal, trigger: str, flows: Sequence[str]) -> None:
        self._journal = journal
        self._trigger = trigger
        self._flows = flows

    async def backlog(self) -> Backlog:
        """Return what may be given back, and what behind the first of it has begun."""
        return await self._journal.backlog(self._trigger, self._flows)

    async def withdraw(self, seqs: Sequence[int], positions: Mapping[str, str | None]) -> None:
        """Forget these events and their runs, and move the positions in front of them."""
        await self._journal.withdraw(seqs, trigger=self._trigger, positions=positions)


def _is_refused(routed: Sequence[Routed]) -> bool:
    """Whether no flow can take the data of any of these events."""
    return bool(routed) and all(one.refused_by_all for one in routed)
