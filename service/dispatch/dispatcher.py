"""The dispatcher claims runs as slots become free, and has `attempts` execute them.

Guarantees: a run executes only under a claim that is on disk; runs of a flow start in arrival
order; memory holds a bounded window of any backlog; no more runs are running on disk than there
are slots. On a full disk nothing is claimed until writing works again. Not here: what a run does
(`executor`), whose turn it is (`scheduling`), when a run is due (`due`), who may run (`admission`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import anyio

from turnout.service.domain.decisions import Reason
from turnout.service.domain.errors import JournalFull
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Need
from turnout.service.domain.run import FINISHED, Outcome, Run, RunState
from turnout.service.domain.waiting import Cause, Waiting
from turnout.service.flowcontrol.dependency import Breakers
from turnout.service.flowcontrol.gate import Candidate
from turnout.service.flowcontrol.named_limit import NamedLimit
from turnout.service.flowcontrol.overrides import limit_name, limits_of, with_overrides
from turnout.service.flowcontrol.use import Use
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

from .attempts import Attempts, Ended, until_writable
from .backpressure import Backpressure
from .breakers import WrittenBreakers
from .due import DueRuns
from .executor import Executor
from .late import end_late
from .queue import Queue
from .restoring import Restoring
from .scheduling import Scheduler
from .uses import uses_now
from .wanted import Wanted, wanted

MAX_BODY_BYTES_IN_MEMORY = 8 * 1024
"""Events up to this size stay in memory with their queued run."""

UNWIND_SECONDS = 2.0


class Dispatcher:
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
        self._attempts = Attempts(journal, executor, metrics, self, now=now, ended=ended)
        self._decisions = metrics.decisions
        self._now = now
        self._flows: dict[str, AnyFlow] = {}
        self._limits: Mapping[str, int] = {}
        self._scheduler = Scheduler(journal, concurrency, now)
        self._restoring = Restoring(journal, self._scheduler)
        self._written_breakers = WrittenBreakers(journal, self._scheduler.breakers)
        self._due = DueRuns(journal, self._scheduler, now=now)
        self._scheduler.run_ended = self._due.recheck
        executor.use_limits(self._scheduler.named)
        self._work = self._scheduler.work
        self._stopping = False
        self._resumed_at: dict[str, datetime] = {}  # of each flow that was paused, the last time
        self._quiet = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None

    # ------------------------------------------------------------ the project

    def serve(self, flows: Iterable[AnyFlow], paused: Iterable[str]) -> None:
        """Serve the flows of a (re)loaded project; running attempts keep the code they began."""
        self._flows = {flow.name: flow for flow in flows}
        declared = [with_overrides(flow, self._limits) for flow in self._flows.values()]
        self._scheduler.serve(declared, paused, self._now())
        self._restoring.begin()
        self._due.adopt_orphans()

    def override_limits(self, counts: Mapping[str, int]) -> None:
        """Let limits be other counts than flow files say, by `limit_name`; all others as declared.

        A higher count starts runs at once, a lower one stops none.
        """
        changed = {name for name, _ in counts.items() ^ self._limits.items()}
        self._limits = counts
        for flow in self._flows.values():
            if not changed.isdisjoint(limit_name(flow.name, rule) for rule in limits_of(flow)):
                self._scheduler.declare(with_overrides(flow, counts), self._now())

    def uses(self) -> list[Use]:
        """Return how much of each rule of the served flows is in use."""
        return uses_now(self._flows, self._scheduler, self._now())

    def adopt(self, was: str, name: str) -> None:
        """Count what runs or waits under a flow's old name for its new name (a reload's `was=`).

        The new queue must be paused while the journal renames the runs, and reread afterwards.
        """
        self._scheduler.adopt(was, name, self._now())
        self._due.adopt_orphans()

    async def restore(self) -> None:
        """Hold the keys and places of runs that the journal names as holders and do not run."""
        await self._restoring.restore(self._flows)

    def pause(self, flow: str) -> None:
        """Start no more runs of a flow; running ones continue."""
        self._scheduler.queue(flow).pause()

    def resume(self, flow: str) -> None:
        """Start runs of a paused flow again."""
        queue = self._scheduler.queue(flow)
        queue.resume()
        self._resumed_at[flow] = self._now()
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

    def starts(self, flow: str) -> bool:
        """Whether queued runs may start: the flow is not paused, the service not stopping."""
        return not (self._stopping or self._scheduler.queue(flow).paused)

    def may_start(self, flow: str) -> bool:
        """Whether runs of a flow may start: it is served and not paused."""
        queue = self._scheduler.find(flow)
        return queue is not None and not queue.paused

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

    def start_prepared(self, fired: FiredRun, events: Sequence[Event], now: datetime) -> None:
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
            members=RunMembers(window_seq=fired.window_seq, events=events, count=len(events)),
        )
        self._start(run, claimed)

    def take_back(self, run: NewRun) -> None:
        """Cancel a reservation: the run was not written."""
        if run.state is RunState.RUNNING:
            self._scheduler.queue(run.flow).end_starting()
            self._scheduler.leave_unstarted(run)
            if self._stopping:
                self._work.set()
        elif run.state is RunState.QUEUED:
            self._scheduler.queue(run.flow).discard_arriving(run)

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

    def waits_for(self, run: Run) -> Waiting | None:
        """Return what keeps a run from starting; None if it could not start now anyway."""
        return self._scheduler.waits_for(run, self._now())

    @property
    def breakers(self) -> Breakers:
        """The breakers of what flows need."""
        return self._scheduler.breakers

    @property
    def at_rest(self) -> bool:
        """Whether no run could start: all that wait were refused when they asked last."""
        return self._scheduler.at_rest

    def named_limits(self) -> list[tuple[NamedLimit, list[str]]]:
        """Return the limits that flows share by a name, each with these flows."""
        return self._scheduler.named_limits()

    def backpressure(self) -> Backpressure:
        """Return the back-pressure for one trigger whose source keeps unread events."""
        return Backpressure(self._scheduler)

    @property
    def running(self) -> frozenset[str]:
        """The ids of the runs with a running attempt."""
        return self._attempts.runs

    def keeps_places(self, flow: str) -> bool:
        """Whether waiting runs of a flow keep a place at a limit."""
        return bool(self._scheduler.queue(flow).gates.held)

    def wanted(self, run: NewRun | Run) -> list[Wanted]:
        """Return what a run wants that others hold until they end."""
        queue = self._scheduler.find(run.flow)
        return [] if queue is None else wanted(queue, run)

    def holders(self, flow: str, order_key: str) -> Collection[str]:
        """Return the ids of the runs that hold an ordering key; more than one after a rename."""
        return self._scheduler.queue(flow).gates.order.holders(order_key)

    @property
    def known_due(self) -> frozenset[int]:
        """The seqs of the due runs in memory: a gate refuses them, or they are about to start."""
        return self._scheduler.known_due

    def next_alarm_at(self) -> datetime | None:
        """Return the next instant at which a run asks again that a gate has refused until then."""
        return self._scheduler.next_alarm_at()

    @property
    def free_slots(self) -> int:
        """How many more runs may run at once."""
        return self._scheduler.free_slots

    def held_slots(self) -> Mapping[str, int]:
        """Return how many slots each flow holds."""
        return self._scheduler.held_slots()

    def reread_queue(self, flow: str) -> None:
        """Read a flow's queue from the journal again: its runs were changed there."""
        self._scheduler.reread(flow)
        self._due.recheck()

    def recheck_due(self) -> None:
        """Check for due runs now: waiting runs were woken."""
        self._due.recheck()

    def clock_set(self) -> None:
        """Ask again, now that the clock was set, what waits for an instant or is due."""
        self._scheduler.ring()
        self._due.recheck()

    def cancel(self, run: Run) -> None:
        """Stop a run whose cancel is on disk, cooperatively: at its next await.

        A run with steps to undo is queued again and keeps its ordering key.
        """
        self._due.recheck()  # a parent may wait for it
        stopped = self._attempts.cancel(run.id)
        if run.state is RunState.QUEUED:
            self.reread_queue(run.flow)
        elif not stopped:
            self.release_key(run)

    def ended_for(self, ended: Appended | Retried | ClosedWindows) -> None:
        """Stop the older runs that new ones have ended on disk; count what was decided."""
        for made in ended.decided:
            self._decisions.labels(made.flow, made.reason).inc()
        for run in ended.cancelled:
            is_running = run.id in self._attempts
            self.cancel(run)
            if run.state in FINISHED and not is_running:
                self._ended_early(run)
        self.skipped(ended.skipped)

    def skipped(self, runs: Sequence[Run]) -> None:
        """Let go of queued runs that were never claimed and have ended as skipped on disk.

        What memory holds of them is left out when it is claimed.
        """
        for run in runs:
            self.release_key(run)
            self._ended_early(run)
        if runs:
            self._due.recheck()  # a parent may wait for one

    def release_key(self, run: Run) -> None:
        """Release the ordering key and the places of a run that is not running.

        It was cancelled or dropped.
        """
        self._scheduler.forget_due(run.seq)
        self._scheduler.give_up_places(run)
        if run.order_key is not None:
            self._scheduler.let_go(run.flow, run.order_key, run.id)

    def discarded(self, runs: Sequence[Run]) -> None:
        """Let go of runs that an operator has discarded, and count the decisions about them."""
        self.skipped(runs)
        for run in runs:
            self._decisions.labels(run.flow, Reason.DROPPED.value).inc()

    # ------------------------------------------------------------ the loop

    async def run(self, started: Callable[[], None]) -> None:
        """Dispatch until `stop`; raise `JournalBroken` when outcomes can no longer be written."""
        await self.restore()
        self._scheduler.recall(await self._journal.starts())
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._attempts.use_current_task()
            claiming = tasks.create_task(self._claim_runs())
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

    async def _claim_runs(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            if self._stopping:
                self._work.set()  # for `stop`, which may be waiting in `_until_idle`
                return
            await self._scheduler.refill()
            chosen = self._choose()
            if chosen:
                await self._claim(chosen)
                self._work.set()
            if self._scheduler.late:
                await self._end_late()
                self._work.set()

    def _choose(self) -> list[Queued]:
        return [] if self._stopping else self._scheduler.choose(self._now())

    async def _claim(self, chosen: list[Queued]) -> None:
        for entered in chosen:
            queue = self._scheduler.queue(entered.flow)
            queue.begin_starting()
            entered.cause = self._cause_of(entered, queue)
        try:
            claimed = await self._journal.claim(
                [run.seq for run in chosen],
                now=self._now(),
                untouched={run.seq: run.claimed for run in chosen if run.claimed is not None},
                starts={run.seq: run.starts for run in chosen if run.starts},
            )
        except JournalFull:
            for entered in chosen:
                self._scheduler.leave_unstarted(entered)
            for flow in {entered.flow for entered in chosen}:
                self.reread_queue(flow)
            await until_writable(self._journal)
            return
        finally:
            for entered in chosen:
                self._scheduler.forget_due(entered.seq)
                self._scheduler.queue(entered.flow).end_starting()
        taken = {run.claim.run_seq: run for run in claimed}
        for entered in chosen:
            run = taken.pop(entered.seq, None)
            if run is None:  # cancelled meanwhile
                self._scheduler.leave_unstarted(entered)
            else:
                self._start(entered, run)

    async def _end_late(self) -> None:
        """End the runs whose start timeout is over."""
        late, self._scheduler.late = self._scheduler.late, []
        try:
            ended = await end_late(self._journal, late, self._now())
        except JournalFull:
            for flow in {each.flow for each in late}:
                self.reread_queue(flow)
            await until_writable(self._journal)
            return
        for run in ended:
            self._decisions.labels(run.flow, Reason.START_TIMEOUT.value).inc()
        self.skipped(ended)

    def _cause_of(self, run: Queued, queue: Queue) -> Cause:
        """Return what first kept a run from starting, that has not started on insert."""
        resumed_at = self._resumed_at.get(run.flow)
        if resumed_at is not None and run.queued_at <= resumed_at:
            return Cause.PAUSE
        return run.cause or queue.refused_by or Cause.TURN

    # ------------------------------------------------------------ one attempt

    def _start(self, entered: Candidate, run: ClaimedRun) -> None:
        if self._tasks is None:
            raise RuntimeError("the dispatcher is not running")
        self._attempts.start(self._tasks, entered, run, self._flows.get(run.flow))

    def leave_early(self, entered: Candidate) -> bool:
        """Let a run leave the gates while its outcome is being written; False if it stays inside.

        The next run in the slot is written after that outcome, so no more runs are running on disk
        than there are slots, and a busy slot costs one commit per run instead of two. A run with an
        ordering key stays inside, since the next run of the key must not start before the outcome
        is on disk; so does one that may keep its place at a limit, and an isolated run, which runs
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
    return ClaimedRun(
        claim=Claim(run.seq, run.id, 1),
        flow=run.flow,
        event_seq=stored.event_seq,
        event=event,
        attempt=1,
        crashes=0,
        replay=run.replay,
        order_key=run.order_key,
        keys=run.keys,
        due_at=accepted_at,
        arguments=arguments,
    )
