"""The dispatcher claims runs as slots become free, and has `attempts` execute them.

Guarantees: a run executes only under a claim that is on disk; runs of a flow start in arrival
order; memory holds a bounded window of any backlog; no more runs are running on disk than there
are slots. Not here: what a run does (`executor`), whose turn it is (`scheduling`), claiming what is
queued (`claiming`), when a run is due (`due`), who may run (`admission`), and what others may know
(`dispatcher_status`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import anyio

from turnout.service.domain.decisions import Reason
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Need
from turnout.service.domain.run import Outcome, Run, RunState
from turnout.service.flowcontrol.gate import Candidate
from turnout.service.journal.contract import Work
from turnout.service.journal.records import (
    Appended,
    Claim,
    ClaimedRun,
    ClosedWindows,
    FiredRun,
    NewRun,
    Queued,
    Retried,
    RunMembers,
)
from turnout.service.project import AnyFlow
from turnout.service.telemetry.metrics import Metrics

from .attempts import Attempts, Ended
from .breakers import WrittenBreakers
from .claiming import Claiming
from .dispatcher_status import DispatcherStatus
from .due import DueRuns
from .executor import Executor
from .filling import Filling
from .restoring import Restoring
from .scheduling import Scheduler
from .served_flows import ServedFlows

MAX_BODY_BYTES_IN_MEMORY = 8 * 1024
"""Events up to this size stay in memory with their queued run."""

UNWIND_SECONDS = 2.0


class Dispatcher(DispatcherStatus):
    """Fills every free slot with the oldest run that may start."""

    def __init__(
        self,
        journal: Work,
        executor: Executor,
        concurrency: int,
        metrics: Metrics,
        *,
        now: Callable[[], datetime],
        ended: Ended,
        ended_early: Callable[[Run], None],
    ) -> None:
        self._journal = journal
        self._ended_early = ended_early
        self._executor = executor
        self._attempts = Attempts(journal, executor, metrics, self, now=now, ended=ended)
        self._decisions = metrics.decisions
        self._now = now
        self._flows = ServedFlows()
        self._scheduler = Scheduler(concurrency, now)
        self._filling = Filling(journal, self._scheduler, now, self._key_failed)
        self._restoring = Restoring(journal, self._scheduler, self._filling)
        self._written_breakers = WrittenBreakers(journal, self._scheduler.breakers)
        self._due = DueRuns(journal, self._scheduler, self._filling, now=now)
        self._claiming = Claiming(
            journal,
            self._scheduler,
            self._filling,
            now=now,
            is_stopping=lambda: self._stopping,
            start=self._start,
            timed_out=partial(self.skipped, reason=Reason.START_TIMEOUT),
            reread=self.reread_queue,
        )
        executor.use_limits(self._scheduler.named)
        self._work = self._scheduler.work
        self._stopping = False
        self._quiet = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None

    # ------------------------------------------------------------ the project

    def serve(self, flows: Iterable[AnyFlow], paused: Mapping[str, datetime]) -> None:
        """Serve the flows of a (re)loaded project; running attempts keep the code they began.

        `paused` says since when flows are paused.
        """
        self._executor.renew()
        self._scheduler.serve(self._flows.serve(flows), paused, self._now())
        self._restoring.begin()
        self._due.adopt_orphans()

    def override_limits(self, counts: Mapping[str, int]) -> None:
        """Let limits be other counts than flow files say, by `limit_name`; all others as declared.

        A higher count starts runs at once, a lower one stops none.
        """
        for flow in self._flows.override(counts):
            self._scheduler.declare(flow, self._now())

    def adopt(self, was: str, name: str) -> None:
        """Count what runs or waits under a flow's old name for its new name (a reload's `was=`).

        The new queue must be paused while the journal renames the runs, and reread afterwards.
        """
        self._scheduler.adopt(was, name, self._now())
        self._due.adopt_orphans()

    async def restore(self) -> None:
        """Hold the keys and slots of runs that the journal names as holders and do not run."""
        await self._restoring.restore(self._flows.by_name)

    def pause(self, flow: str, since: datetime | None = None) -> None:
        """Start no more runs of a flow; running ones continue."""
        self._scheduler.queue(flow).pause(since or self._now())

    def resume(self, flow: str) -> None:
        """Start runs of a paused flow again."""
        queue = self._scheduler.queue(flow)
        queue.resume(self._now())
        self._scheduler.activate(queue)

    @contextmanager
    def changing(self, flows: Iterable[str]) -> Iterator[None]:
        """Start no run of these flows while their runs are changed in the journal inside the block.

        A claim already on its way is written before any journal request made inside. At the end the
        queues are read again, so no newer run overtakes one that the block has queued.
        """
        queues = [queue for flow in flows if (queue := self._scheduler.find(flow)) is not None]
        for queue in queues:
            queue.begin_change()
        try:
            yield
        finally:
            for queue in queues:
                queue.end_change()
                self.reread_queue(queue.flow)

    # ------------------------------------------------------------ new runs

    def reserve(self, run: NewRun, flow: AnyFlow, now: datetime) -> None:
        """Decide whether a new run is inserted as running, with a slot, or as queued.

        The write must be submitted in the same turn of the loop: runs start in the order in which
        they were reserved.
        """
        if run.state is not RunState.QUEUED:
            return
        queue = self._scheduler.queue(flow.name)
        if self._stopping or not self._scheduler.may_start_new:
            queue.expect(run)
        elif queue.reserve(run, now):
            run.state = RunState.RUNNING

    def prepare(self, run: NewRun, now: datetime) -> None:
        """Take a slot for the run of a window that may fire in the write; without one it queues."""
        queue = self._scheduler.find(run.flow)
        if queue is None or self._stopping:
            return
        if queue.reserve(run, now):
            run.state = RunState.RUNNING
        else:
            queue.discard_arriving(run)

    def start_prepared(
        self,
        fired: FiredRun,
        events: Sequence[Event],
        arguments: Mapping[str, Any],
        now: datetime,
    ) -> None:
        """Start the run of a window that was written in the slot it had."""
        run = fired.prepared
        assert run is not None
        self._scheduler.queue(run.flow).end_starting()
        self._scheduler.progressed.set()
        claimed = ClaimedRun(
            claim=Claim(run.seq, run.id, 1),
            flow=run.flow,
            event_seq=fired.events[0],
            event=events[0],
            attempt=1,
            crashes=0,
            replay=0,
            order_key=None,
            keys=None,
            due_at=now,
            arguments=arguments,
            members=RunMembers(
                window_seq=fired.window_seq, events=events, count=len(events),
                seqs=fired.events, indexes=range(len(events)),
            ),
        )  # fmt: skip
        self._start(run, claimed)

    def take_back(self, run: NewRun) -> None:
        """Cancel a reservation: the run was not written."""
        if run.state is RunState.RUNNING:
            self._scheduler.queue(run.flow).end_starting()
            self._scheduler.leave_unstarted(run)
            if self._stopping:
                self._work.set()
        elif run.state is RunState.QUEUED:
            self._scheduler.not_written(run)

    def start_or_enqueue(
        self,
        run: NewRun,
        event: Event,
        stored: Appended,
        arguments: Mapping[str, Any] | None,
        accepted_at: datetime,
    ) -> None:
        """Start a run inserted as running, or enqueue one inserted as queued."""
        if run.state is RunState.RUNNING:
            self._scheduler.started(run.flow)
            self._start(run, _first_claimed(run, event, stored, arguments, accepted_at))
        elif run.state is RunState.QUEUED:
            queue = self._scheduler.queue(run.flow)
            claimed = None
            if queue.keeps_new(run) and len(event.body) <= MAX_BODY_BYTES_IN_MEMORY:
                claimed = _first_claimed(run, event, stored, arguments, accepted_at)
            self._scheduler.arrived(
                run,
                Queued(
                    seq=run.seq,
                    arrival=run.seq,
                    id=run.id,
                    flow=run.flow,
                    order_key=run.order_key,
                    keys=run.keys,
                    priority=run.priority,
                    due_at=None,
                    queued_at=accepted_at,
                    isolated=False,
                    claimed=claimed,
                ),
            )

    def fired(self, run: Queued) -> None:
        """Take a run that was written as queued when its window fired."""
        if self._scheduler.find(run.flow) is not None:  # else it waits in the journal
            self._scheduler.arrived(run, run)

    def reread_queue(self, flow: str) -> None:
        """Read a flow's queue from the journal again: its runs were changed there."""
        self._scheduler.reread(flow)

    def recheck_due(self) -> None:
        """Check for due runs now: waiting runs were woken."""
        self._due.recheck()

    def clock_set(self) -> None:
        """Ask again, now that the clock was set, what waits for an instant or is due."""
        self._scheduler.ring()
        self._due.recheck()

    def cancel(self, run: Run) -> None:
        """Stop a run whose cancel is on disk, cooperatively: at its next await.

        A run with steps to undo is queued again and keeps its ordering key. Those who wait for it
        are told when it has ended: by the end of its attempt, if one runs.
        """
        self._due.recheck()  # a parent may wait for it
        stopped = self._attempts.cancel(run.id)
        if run.state is RunState.QUEUED:
            self.reread_queue(run.flow)
        elif not stopped:
            self._let_go(run)

    def ended_for(self, ended: Appended | Retried | ClosedWindows) -> None:
        """Stop the older runs that new ones have ended on disk; count what was decided."""
        for made in ended.decided:
            self._decisions.labels(made.flow, made.reason).inc()
        for run in ended.cancelled:
            self.cancel(run)
        for run in ended.skipped:
            self._let_go(run)

    def skipped(self, runs: Sequence[Run], reason: Reason) -> None:
        """Let go of queued runs that were never claimed and have ended as skipped on disk.

        Each is counted as a decision.
        """
        for run in runs:
            self._let_go(run)
            self._decisions.labels(run.flow, reason.value).inc()

    def _key_failed(self, flow: AnyFlow, ended: Sequence[Run]) -> None:
        """Let go of a run that has failed on disk before it could start, and stop its children.

        Its key of a new rule could not be computed. Where a dead letter blocks its ordering key, it
        holds that from now on, also if it had not asked for it yet.
        """
        failed, *children = ended
        for child in children:
            self.cancel(child)
        self._let_go(failed)
        if flow.on_dead == "block" and failed.order_key is not None:
            self._scheduler.add_holder(flow.name, failed.order_key, failed.id)

    def _let_go(self, run: Run) -> None:
        self._scheduler.forget(run)
        self.release_key(run)
        self._ended_early(run)
        self._due.recheck()  # a parent may wait for it

    def release_key(self, run: Run) -> None:
        """Release the ordering key and the slots of a run that is not running.

        It was cancelled or dropped.
        """
        self._scheduler.forget_due(run.seq)
        self._scheduler.give_up_slots(run)
        if run.order_key is not None:
            self._scheduler.let_go(run.flow, run.order_key, run.id)

    # ------------------------------------------------------------ the loop

    async def run(self, started: Callable[[], None]) -> None:
        """Dispatch until `stop`; raise `JournalBroken` when outcomes can no longer be written."""
        await self.restore()
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._attempts.use_current_task()
            claiming = tasks.create_task(self._claiming.run())
            watching = tasks.create_task(self._due.watch())
            started()
            try:
                await self._quiet.wait()
            except asyncio.CancelledError:
                self.stop_starting()
                raise
            claiming.cancel()
            watching.cancel()
            self._scheduler.close()

    async def stop(self, grace: timedelta) -> int:
        """Claim nothing more, let runs end within `grace`, and hand back the rest.

        Handing back spends no attempt. Returns the number of runs stuck in threads, which cannot be
        ended: then `run` does not return, and the process must end with `os._exit`.
        """
        self._stopping = True
        with anyio.move_on_after(grace.total_seconds()):
            await self._until_idle()
        self._attempts.cancel_all()
        with anyio.move_on_after(UNWIND_SECONDS):
            await self._until_idle()
        stuck = await self._attempts.abandon()
        self._quiet.set()
        return stuck

    async def _until_idle(self) -> None:
        while self._attempts or self._scheduler.starting:
            self._work.clear()
            await self._work.wait()

    # ------------------------------------------------------------ one attempt

    def _start(self, entered: Candidate, run: ClaimedRun) -> None:
        if self._tasks is None:
            raise RuntimeError("the dispatcher is not running")
        self._attempts.start(self._tasks, entered, run, self._flows.by_name.get(run.flow))

    def leave_early(self, entered: Candidate) -> bool:
        """Let a run leave the gates while its outcome is being written; False if it stays inside.

        The next run in the slot is written after that outcome, so no more runs are running on disk
        than there are slots, and a busy slot costs one commit per run instead of two. A run with an
        ordering key stays inside, since the next run of the key must not start before the outcome
        is on disk; so does one that may keep its slot at a limit, and an isolated run, which runs
        alone until then.
        """
        if entered.order_key is not None or entered.isolated:
            return False
        return self._scheduler.leave_early(entered)

    def enter_again(self, entered: Candidate) -> None:
        """Let a run that left early enter again: the outcome could not be written."""
        self._scheduler.queue(entered.flow).gates.enter(entered, self._now())

    def probes(self, entered: Candidate, needs: Sequence[Need]) -> Collection[str]:
        """Return for which of the needs of its flow this attempt goes alone."""
        return self._scheduler.breakers.probed_by(entered, needs, self._now())

    def judge(self, entered: Candidate, needs: Sequence[Need], outcome: Outcome) -> None:
        """Tell the breakers of what its flow needs how an attempt has ended."""
        self._scheduler.breakers.ended(entered, needs, outcome, self._now())

    def stop_starting(self) -> None:
        """Start nothing more: an unexpected error is about to end the process.

        Every run that is running at its end counts a crash.
        """
        self._stopping = True

    def attempt_ended(
        self, entered: Candidate, run: ClaimedRun, flow: AnyFlow | None, outcome: Outcome | None
    ) -> None:
        """Let a run leave the gates, unless it left early; if it goes on, it keeps its key."""
        state = None if outcome is None else outcome.state
        continues = state in (RunState.RETRYING, RunState.WAITING)
        blocks = state is RunState.FAILED and flow is not None and flow.on_dead == "block"
        if entered.token:
            self._scheduler.leave(entered, keeps_key=continues or blocks, goes_on=continues)
        if continues or run.may_be_awaited:
            self._due.recheck()
        if state is RunState.QUEUED and not self._stopping:
            self.reread_queue(run.flow)
        if self._stopping:
            self._work.set()  # `stop` looks again whether anything still runs


def _first_claimed(
    run: NewRun,
    event: Event,
    stored: Appended,
    arguments: Mapping[str, Any] | None,
    accepted_at: datetime,
) -> ClaimedRun:
    # In the order of the fields: named arguments of a class take twice as long.
    made = ClaimedRun(
        Claim(run.seq, run.id, 1),
        run.flow,
        stored.event_seq,
        event,
        1,
        0,
        run.replay,
        run.order_key,
        run.keys,
        accepted_at,
    )
    made.arguments = arguments
    return made
