"""Submit once: reserve slots, write, start what was written; or take the reservations back.

The one way in for events, of emitters and of running flows. The dispatcher decides before the write
whether a run is inserted as running, in a slot, or as queued. A write that is on its way is not
called back: if its caller is cancelled meanwhile, the runs are started all the same.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Protocol, TypeVar

from turnout.service.dispatch.dispatcher import Dispatcher
from turnout.service.domain.decisions import Reason
from turnout.service.domain.errors import JournalError
from turnout.service.domain.event import Event
from turnout.service.domain.run import FILTER_ERROR, RunError, RunState
from turnout.service.journal.records import Appended, Decision, NewRun
from turnout.service.telemetry.logs import get_logger
from turnout.service.telemetry.metrics import Metrics

from .batch_fill import called_with, to_prepare
from .router import Routed
from .run_counts import RunCounts
from .windows import WindowDeadlines

log = get_logger("turnout")

A = TypeVar("A")


class Write(Protocol):
    """Submits the write of routed events, once their runs are reserved."""

    def __call__(self, *, now: datetime) -> Future[list[Appended]]:
        """Return the future of the journal, which resolves after the commit."""


def _nothing(_error: BaseException) -> None:
    """Do nothing about a write that failed, but raise its error."""


class Submit:
    """Submits routed events to the journal and to the dispatcher."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        windows: WindowDeadlines,
        metrics: Metrics,
        ended: RunCounts,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._dispatcher = dispatcher
        self._windows = windows
        self._decisions = metrics.decisions
        self._ended = ended
        self._now = now

    def __call__(
        self,
        routed: Sequence[Routed],
        write: Write,
        answer: Callable[[Routed, Appended, datetime], A],
        refused: Callable[[BaseException], None] = _nothing,
    ) -> Future[list[A]]:
        """Return the answers, once the events are on disk and their runs started or queued.

        `answer` is called for each event that is written, or was before, with the time of the
        write; `refused` with the error when it fails: both also if the caller is gone by then.
        Raises what `write` raises.
        """
        now = self._now()
        prepared: list[NewRun] = []
        for one in routed:
            for run, flow, _, _ in one.runs:
                self._dispatcher.reserve(run, flow, now)
            if one.entry.members and not prepared:
                prepared = to_prepare(each.entry for each in routed)
        for run in prepared:
            self._dispatcher.prepare(run, now)
        try:
            written = write(now=now)
        except JournalError as error:
            self._take_back(routed)
            refused(error)
            raise
        answers: Future[list[A]] = written.get_loop().create_future()
        written.add_done_callback(partial(self._done, routed, now, answer, refused, answers))
        return answers

    def _done(
        self,
        routed: Sequence[Routed],
        accepted_at: datetime,
        answer: Callable[[Routed, Appended, datetime], A],
        refused: Callable[[BaseException], None],
        answers: Future[list[A]],
        written: Future[list[Appended]],
    ) -> None:
        """Start what was written in a slot, queue the rest, and wake the runs that wait for it."""
        error = written.exception()
        if error is not None:
            self._take_back(routed)
            refused(error)
            if not answers.done():
                answers.set_exception(error)
            return
        made, woken = [], False
        results = written.result()
        for one, stored in zip(routed, results, strict=True):
            if stored.duplicate or stored.conflict:
                self._was_delivered_before(one, stored)
            else:
                self._begin(one, stored, accepted_at)
                if one.entry.members:
                    self._joined(one, stored, routed, results)
            if one.entry.topics:
                woken = True
            made.append(answer(one, stored, accepted_at))
        if woken:
            self._dispatcher.recheck_due()
        if not answers.done():
            answers.set_result(made)

    def _begin(self, one: Routed, stored: Appended, accepted_at: datetime) -> None:
        """Start what was written in a slot, queue the rest, and count what was decided.

        What conditions have refused is taken back; older runs that new ones have ended are stopped.
        """
        for run, _, event, arguments in one.runs:
            if run.error is not None:
                self._tell_failed(run, event, run.error)
            if stored.refused and run.id in stored.refused:
                self._dispatcher.take_back(run)
                self._ended.count(run.flow, RunState.SKIPPED, event)
            else:
                self._dispatcher.start_or_enqueue(run, event, stored, arguments, accepted_at)
        if one.entry.decisions:
            self.count(one.entry.decisions)
        if stored.decided or stored.cancelled:
            self._dispatcher.ended_for(stored)

    def _joined(
        self,
        one: Routed,
        stored: Appended,
        routed: Sequence[Routed],
        results: Sequence[Appended],
    ) -> None:
        """Take note of a deadline, and start or queue the runs of windows that have fired."""
        if stored.deadline is not None:
            self._windows.joined(stored.deadline)
        for member in one.entry.members:
            for prepared in member.prepared:
                fired = next((each for each in stored.fired if each.prepared is prepared), None)
                if fired is None:
                    self._dispatcher.take_back(prepared)
                else:
                    events, arguments = called_with(fired, prepared.flow, routed, results)
                    self._dispatcher.start_prepared(fired, events, arguments, self._now())
        if stored.fired:
            self._windows.fired([each for each in stored.fired if each.prepared is None])

    def _was_delivered_before(self, one: Routed, stored: Appended) -> None:
        self._take_back((one,))
        reason = Reason.CONFLICT if stored.conflict else Reason.DUPLICATE
        self._decisions.labels("", reason).inc()

    def _tell_failed(self, run: NewRun, event: Event, error: RunError) -> None:
        """Log and count a run that is a dead letter as it is stored, since it could not start."""
        self._ended.count_unstarted(run.flow, RunState.FAILED, event, error)
        if error.type == FILTER_ERROR:
            log.error(
                "filter.failed",
                flow=run.flow,
                run=run.id,
                trigger=event.trigger,
                event=event.id,
                error=error.message,
            )
            return
        log.error(
            "event.rejected",
            flow=run.flow,
            run=run.id,
            trigger=event.trigger,
            event=event.id,
            error=f"{error.type}: {error.message}",
        )

    def count(self, decisions: Iterable[Decision]) -> None:
        """Count decisions by flow and reason, once they are made for good."""
        for made in decisions:
            self._decisions.labels(made.flow, made.reason).inc()

    def _take_back(self, routed: Sequence[Routed]) -> None:
        for one in routed:
            for run, *_ in one.runs:
                self._dispatcher.take_back(run)
            for member in one.entry.members:
                for prepared in member.prepared:
                    self._dispatcher.take_back(prepared)
