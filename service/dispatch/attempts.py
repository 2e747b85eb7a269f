"""Running attempts: each claimed run executes in its own task, and its outcome is recorded.

Guarantees: an attempt ends only when its outcome is on disk, or when the journal refuses it because
the claim is lost (an operator cancelled the run). A full disk is waited for. Not here: who may run
and when (`dispatcher`), what a run does (`executor`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from contextvars import Context, copy_context
from datetime import datetime, timedelta
from typing import Any, Protocol

from turnout.service.domain.errors import ClaimLost, JournalFull, StateMoved
from turnout.service.domain.flow import Need
from turnout.service.domain.run import FINISHED, Outcome, RunState
from turnout.service.domain.waiting import Cause
from turnout.service.flowcontrol.gate import Candidate
from turnout.service.journal.contract import Work, Writable
from turnout.service.journal.records import ClaimedRun
from turnout.service.project import AnyFlow
from turnout.service.steps.attempt_state import AttemptState
from turnout.service.steps.tracing import begin_trace, trace_attempt
from turnout.service.telemetry.logs import get_logger
from turnout.service.telemetry.meters import Counter, Histogram, observe_together
from turnout.service.telemetry.metrics import Metrics

from .executor import Executor

log = get_logger("turnout.attempts")


class Gates(Protocol):
    """The gates that running attempts are inside; the dispatcher implements it."""

    def leave_early(self, entered: Candidate) -> bool:
        """Let a run leave while its outcome is being written; False if it must stay inside."""

    def enter_again(self, entered: Candidate) -> None:
        """Let a run that left early enter again: its outcome could not be written."""

    def attempt_ended(
        self, entered: Candidate, run: ClaimedRun, flow: AnyFlow | None, outcome: Outcome | None
    ) -> None:
        """Handle the end of an attempt, before anyone else; None: its claim was lost."""

    def probes(self, entered: Candidate, needs: Sequence[Need]) -> Collection[str]:
        """Return for which of the needs of its flow this attempt goes alone."""

    def judge(self, entered: Candidate, needs: Sequence[Need], outcome: Outcome) -> None:
        """Take what an outcome says about what its flow needs, before it is recorded."""

    def stop_starting(self) -> None:
        """Start nothing more: an unexpected error ends the process."""


Ended = Callable[[ClaimedRun, Outcome, AttemptState], Awaitable[None]]

HANDED_BACK = Outcome(state=RunState.QUEUED, counts=False)
PROBE_SECONDS = 1.0
_NONE = timedelta(0)


class _RunningAttempt:
    """One running attempt; it is `executing` while the flow's own code may run.

    `entered` is the run as it entered the gates. `previous` is an earlier attempt of the same run
    that has not ended yet.
    """

    __slots__ = (
        "cancelled", "cancels", "entered", "executing", "previous", "run", "state", "task",
    )  # fmt: skip

    def __init__(
        self, entered: Candidate, run: ClaimedRun, previous: _RunningAttempt | None
    ) -> None:
        self.entered = entered
        self.run = run
        self.state = AttemptState(run)
        self.previous = previous
        self.task: asyncio.Task[None] | None = None
        self.executing = False
        self.cancelled = False
        self.cancels = 0  # of its task, to be taken back when the flow's code has ended

    def cancel(self) -> None:
        self.cancelled = True
        if self.executing and self.task is not None:
            self.cancels += 1
            self.task.cancel()

    async def until_previous_ended(self) -> None:
        if self.previous is not None and self.previous.task is not None:
            await asyncio.wait([self.previous.task])
        self.previous = None

    def take_back_cancel(self) -> None:
        assert self.task is not None
        self.cancels -= 1
        self.task.uncancel()


class _Meters:
    """The metrics of one flow, with its label looked up once."""

    __slots__ = ("_attempts", "_by_state", "_waits", "_waits_by_cause", "flow", "run_seconds")

    def __init__(self, metrics: Metrics, flow: str) -> None:
        self.flow = flow
        self.run_seconds: Histogram = metrics.run_seconds.labels(flow)
        self._waits = metrics.run_wait_seconds
        self._waits_by_cause: dict[Cause, Histogram] = {}
        self._attempts = metrics.attempts
        self._by_state: dict[RunState, Counter] = {}

    def wait_seconds(self, cause: Cause) -> Histogram:
        histogram = self._waits_by_cause.get(cause)
        if histogram is None:
            histogram = self._waits_by_cause[cause] = self._waits.labels(self.flow, cause)
        return histogram

    def count(self, state: RunState) -> None:
        counter = self._by_state.get(state)
        if counter is None:
            counter = self._by_state[state] = self._attempts.labels(self.flow, state)
        counter.inc()


class Attempts:
    """Runs claims; when one ends, tells `gates`, then `ended`, which tells those who wait."""

    def __init__(
        self,
        journal: Work,
        executor: Executor,
        metrics: Metrics,
        gates: Gates,
        *,
        now: Callable[[], datetime],
        ended: Ended,
    ) -> None:
        self._journal = journal
        self._executor = executor
        self._metrics = metrics
        self._now = now
        self._gates = gates
        self._ended = ended
        self._owner: asyncio.Task[Any] | None = None
        self._context = Context()
        self._running: dict[str, _RunningAttempt] = {}
        self._meters: dict[str, _Meters] = {}

    def __len__(self) -> int:
        return len(self._running)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._running

    @property
    def runs(self) -> frozenset[str]:
        """The ids of the runs with a running attempt."""
        return frozenset(self._running)

    def use_current_task(self) -> None:
        """Run attempts in the context of the current task; its cancel ends the service."""
        self._owner, self._context = asyncio.current_task(), copy_context()

    def _is_ending(self) -> bool:
        return self._owner is None or self._owner.cancelling() > 0

    def start(
        self, tasks: asyncio.TaskGroup, entered: Candidate, run: ClaimedRun, flow: AnyFlow | None
    ) -> None:
        """Execute a claimed run that is inside the gates.

        Without a flow (a reload removed it) the run is handed back. A run that was cancelled and
        retried may still have an attempt in a thread or a `finally`: the new attempt waits for it.
        The task gets a fresh context, since another run's attempt may be the caller.
        """
        run_id = run.claim.run_id
        previous = self._running.get(run_id)
        if previous is not None and not previous.cancelled:
            previous.cancel()
        attempt = _RunningAttempt(entered, run, previous)
        self._running[run_id] = attempt
        work = self._run(attempt, flow)
        try:
            attempt.task = tasks.create_task(work, context=self._context.copy())
        except RuntimeError:  # the service has failed and is ending
            work.close()
            raise

    def cancel(self, run_id: str) -> bool:
        """Cancel a run's attempt at its next await; False if it has none.

        It is cancelled again after each grace time in which its code has not ended.
        """
        attempt = self._running.get(run_id)
        if attempt is None:
            return False
        attempt.cancel()
        self._cancel_again_later(attempt)
        return True

    def _cancel_again_later(self, attempt: _RunningAttempt) -> None:
        seconds = self._executor.grace.total_seconds()
        asyncio.get_running_loop().call_later(seconds, self._cancel_again, attempt)

    def _cancel_again(self, attempt: _RunningAttempt) -> None:
        """Cancel an attempt whose code goes on after a cancel: others may wait for its end."""
        if attempt.executing:
            run = attempt.run
            log.warning("run.still_executing", flow=run.flow, run=run.claim.run_id)
            attempt.cancel()
            self._cancel_again_later(attempt)

    def cancel_all(self) -> None:
        """Cancel every attempt at its next await; each run is handed back."""
        for attempt in list(self._running.values()):
            attempt.state.handed_back = True
            attempt.cancel()

    async def abandon(self) -> int:
        """Hand back the runs of attempts that do not end; return how many there are."""
        for attempt in list(self._running.values()):
            run = attempt.run
            log.warning("run.abandoned", flow=run.flow, run=run.claim.run_id)
            at = self._now()
            with suppress(ClaimLost, JournalFull):
                await self._journal.record(run, HANDED_BACK, started_at=at, now=at)
        return len(self._running)

    async def _run(self, attempt: _RunningAttempt, flow: AnyFlow | None) -> None:
        """Execute a run and record its outcome; an unexpected error ends the process."""
        run = attempt.run
        needs = () if flow is None else flow.needs
        tracer = self._executor.tracer
        recorded: Outcome | None = None
        try:
            try:
                if attempt.previous is not None:
                    await attempt.until_previous_ended()
                if tracer is not None:
                    begin_trace(tracer, run, attempt.state)
                if needs:
                    attempt.state.probes = self._gates.probes(attempt.entered, needs)
                started_at = self._now()
                outcome = await self._execute(attempt, flow)
                if needs:
                    self._gates.judge(attempt.entered, needs, outcome)
                ended_at = await self._record(attempt, outcome, started_at)
                if ended_at is not None:
                    recorded = outcome
                final = recorded or await self._outcome_without_claim(run.claim.run_id)
            finally:
                if self._running.get(run.claim.run_id) is attempt:
                    del self._running[run.claim.run_id]
                self._gates.attempt_ended(attempt.entered, run, flow, recorded)
            ended_at = ended_at or self._now()
            self._observe(attempt, final.state, started_at, ended_at)
            trace = attempt.state.trace
            if tracer is not None and trace is not None and trace.own.sampled:
                trace_attempt(tracer, trace, run, final, started_at, ended_at)
            await self._ended(run, final, attempt.state)
        except asyncio.CancelledError:
            raise
        except BaseException:
            # Before the slot is taken again: a run that starts now would count this crash too.
            self._gates.stop_starting()
            raise

    async def _outcome_without_claim(self, run_id: str) -> Outcome:
        """Return the outcome of a run whose claim was lost.

        It was cancelled, but is not finished if it has steps to undo or was retried since.
        """
        run = await self._journal.run(run_id)
        is_over = run is None or run.state in FINISHED
        return Outcome(state=RunState.CANCELLED) if is_over else HANDED_BACK

    async def _execute(self, attempt: _RunningAttempt, flow: AnyFlow | None) -> Outcome:
        if flow is None or attempt.cancelled:
            return HANDED_BACK
        attempt.executing = True
        try:
            return await self._executor.execute(
                attempt.run, flow, attempt.state, lambda: attempt.cancelled or self._is_ending()
            )
        except ClaimLost:  # an operator cancelled the run during a step; `_record` finds out too
            return HANDED_BACK
        except asyncio.CancelledError:
            if not attempt.cancelled:
                raise
            return HANDED_BACK
        finally:
            attempt.executing = False
            while attempt.cancels:
                attempt.take_back_cancel()

    async def _record(
        self, attempt: _RunningAttempt, outcome: Outcome, started_at: datetime
    ) -> datetime | None:
        """Write the outcome to disk; return the recorded end, None if the claim was lost."""
        run, state = attempt.run, attempt.state
        while True:
            has_left = self._gates.leave_early(attempt.entered)
            now = self._now()
            try:
                state.cancelled = await self._journal.record(
                    run,
                    outcome,
                    started_at=started_at,
                    now=now,
                    has_waits=state.has_waits,
                    changed=state.changed,
                    progress=state.progress,
                )
            except ClaimLost:
                return None
            except StateMoved as moved:
                if has_left:
                    self._gates.enter_again(attempt.entered)
                log.warning(
                    "run.state_moved", flow=run.flow, run=run.claim.run_id, key=moved.key,
                    hint="give the flow concurrency=1 or ordered_by=; the run starts over",
                )  # fmt: skip
                _start_over(outcome)
            except JournalFull:
                if has_left:
                    self._gates.enter_again(attempt.entered)
                await until_writable(self._journal)
            else:
                return now

    def _observe(
        self, attempt: _RunningAttempt, state: RunState, started_at: datetime, ended_at: datetime
    ) -> None:
        run = attempt.run
        meters = self._meters.get(run.flow)
        if meters is None:
            meters = self._meters[run.flow] = _Meters(self._metrics, run.flow)
        meters.count(state)
        took, waited = ended_at - started_at, max(started_at - run.due_at, _NONE)
        waits = meters.wait_seconds(attempt.entered.cause or Cause.TURN)
        observe_together(meters.run_seconds, took.total_seconds(), waits, waited.total_seconds())


def _start_over(outcome: Outcome) -> None:
    """Turn a success that has lost its state to another run into one more try; it spends none."""
    outcome.state, outcome.counts = RunState.QUEUED, False
    outcome.result = outcome.returned = None


async def until_writable(journal: Writable) -> None:
    """Wait until the journal accepts writes again; raise `JournalBroken` if it never will."""
    while True:
        try:
            await journal.probe()
        except JournalFull:
            await asyncio.sleep(PROBE_SECONDS)
        else:
            return
