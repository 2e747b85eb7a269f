"""The dispatcher claims runs as slots become free, and has `attempts` execute them.

Guarantees: a run executes only under a claim that is on disk; runs of a flow start in arrival
order; memory holds a bounded window of any backlog; no more runs are running on disk than there
are slots. On a full disk nothing is claimed until writing works again. Not here: what a run does
(`executor`), whose turn it is (`scheduling`), when a run is due (`due`), who may run (`admission`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import anyio

from turnout.service.domain.errors import JournalFull
from turnout.service.domain.event import CALLED, Event
from turnout.service.domain.run import Outcome, Run, RunState
from turnout.service.flowcontrol.admission import RUNNING, UNWRITTEN, Admission
from turnout.service.journal.contract import Journal
from turnout.service.journal.records import Appended, Claim, ClaimedRun, NewRun, Queued
from turnout.service.project import AnyFlow
from turnout.service.telemetry.metrics import Metrics

from .attempts import Attempts, Ended, until_writable
from .backpressure import Backpressure
from .due import DueRuns
from .executor import Executor
from .scheduling import Scheduler

MAX_BODY_BYTES_IN_MEMORY = 8 * 1024
"""Events up to this size stay in memory with their queued run."""

UNWIND_SECONDS = 2.0


class Dispatcher:
    """Fills every free slot with the oldest run that may start."""

    def __init__(
        self,
        journal: Journal,
        executor: Executor,
        admission: Admission,
        metrics: Metrics,
        *,
        now: Callable[[], datetime],
        ended: Ended,
    ) -> None:
        self._journal = journal
        self._admission = admission
        self._attempts = Attempts(journal, executor, metrics, self, now=now, ended=ended)
        self._now = now
        self._flows: dict[str, AnyFlow] = {}
        self._scheduler = Scheduler(journal, admission)
        self._due = DueRuns(journal, self._scheduler, now=now)
        self._work = self._scheduler.work
        self._claiming: set[int] = set()
        self._started_meanwhile: set[int] | None = None  # see `hold_keys`
        self._stopping = False
        self._quiet = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None

    # ------------------------------------------------------------ the project

    def serve(self, flows: Iterable[AnyFlow], paused: Iterable[str]) -> None:
        """Serve the flows of a (re)loaded project; running attempts keep the code they began."""
        self._flows = {flow.name: flow for flow in flows}
        self._scheduler.serve(self._flows.values(), paused)
        self._due.adopt_orphans()

    def adopt(self, was: str, name: str) -> None:
        """Count what runs or waits under a flow's old name for its new name (a reload's `was=`).

        The new queue must be paused while the journal renames the runs, and reread afterwards.
        """
        self._scheduler.adopt(was, name)
        self._due.adopt_orphans()

    async def hold_keys(self) -> None:
        """Hold the ordering keys of runs that the journal names as holders and that do not run.

        The journal is read twice, since a run may release its key after the first read. Re-read the
        keys of runs that started during a read: its answer is stale for them.
        """
        self._started_meanwhile = self._attempts.seqs
        read = await self._journal.held_keys()
        for flow, key, seq, dead in read:
            known = self._flows.get(flow)
            if known is not None and (not dead or known.on_dead == "block"):
                self._scheduler.hold_key(flow, key, seq)
            elif known is not None and seq not in self._started_meanwhile:
                # A reload may have changed `on_dead`.
                self._scheduler.release_key(flow, key, seq)
        unsure = {(flow, key, seq) for flow, key, seq, _dead in read if flow in self._flows}
        while unsure:
            self._started_meanwhile = self._attempts.seqs
            unsure -= {(flow, key, seq) for flow, key, seq, _ in await self._journal.held_keys()}
            for flow, key, seq in unsure.copy():
                if seq not in self._started_meanwhile:
                    self._scheduler.release_key(flow, key, seq)
                if self._admission.holder(flow, key) != seq:
                    unsure.discard((flow, key, seq))
        self._started_meanwhile = None

    def pause(self, flow: str) -> None:
        """Start no more runs of a flow; running ones continue."""
        self._scheduler.queue(flow).paused = True

    def resume(self, flow: str) -> None:
        """Start runs of a paused flow again."""
        queue = self._scheduler.queue(flow)
        queue.paused = False
        self._scheduler.activate(queue)

    @contextmanager
    def changing(self, flows: Iterable[str]) -> Iterator[None]:
        """Start no run of these flows while their runs are changed in the journal inside the block.

        A claim already on its way is written before any journal request made inside. At the end the
        queues are read again, so no newer run overtakes one that the block has queued.
        """
        queues = [self._scheduler.queue(flow) for flow in flows]
        for queue in queues:
            queue.freeze_count += 1
        try:
            yield
        finally:
            for queue in queues:
                queue.freeze_count -= 1
                self.reread_queue(queue.flow)

    def starts(self, flow: str) -> bool:
        """Whether queued runs may start: the flow is not paused, the service not stopping."""
        return not (self._stopping or self._scheduler.queue(flow).paused)

    # ------------------------------------------------------------ new runs

    def reserve(self, run: NewRun, flow: AnyFlow) -> None:
        """Decide whether a new run is inserted as running, with a slot, or as queued."""
        if run.state is not RunState.QUEUED:
            return
        queue = self._scheduler.queue(flow.name)
        run.flow = queue.flow  # the flow may have been renamed since the run was made
        if (
            not self._stopping
            and queue.idle
            and not queue.has_blocked(run.order_key, run.limit_key)
            and self._admission.admit(flow.name, run.order_key, run.limit_key, UNWRITTEN, False)
            is None
        ):
            run.state = RunState.RUNNING
            queue.starting += 1
        else:
            queue.arriving += 1

    def unreserve(self, run: NewRun) -> None:
        """Cancel a reservation: the run was not written."""
        if run.state is RunState.RUNNING:
            self._scheduler.queue(run.flow).starting -= 1
            self._scheduler.release(run.flow, run.order_key, run.limit_key, isolated=False)
            self._work.set()
        elif run.state is RunState.QUEUED:
            self._scheduler.queue(run.flow).arriving -= 1

    def start_or_enqueue(
        self,
        run: NewRun,
        event: Event,
        stored: Appended,
        arguments: Mapping[str, Any] | None,
        now: datetime,
    ) -> None:
        """Start a run inserted as running, or enqueue one inserted as queued."""
        if run.state is RunState.RUNNING:
            self._scheduler.queue(run.flow).starting -= 1
            self._scheduler.progressed.set()
            self._start(_first_claimed(run, event, stored, arguments, now))
        elif run.state is RunState.QUEUED:
            queue = self._scheduler.queue(run.flow)
            in_memory = queue.accepts_new and len(event.body) <= MAX_BODY_BYTES_IN_MEMORY
            queue.arriving -= 1
            self._scheduler.enqueue(
                Queued(
                    seq=run.seq,
                    flow=run.flow,
                    order_key=run.order_key,
                    limit_key=run.limit_key,
                    due_at=None,
                    isolated=False,
                    claimed=(
                        _first_claimed(run, event, stored, arguments, now) if in_memory else None
                    ),
                )
            )

    def backpressure(self) -> Backpressure:
        """Return the back-pressure for one trigger whose source keeps unread events."""
        return Backpressure(self._scheduler, self._admission)

    @property
    def running(self) -> frozenset[str]:
        """The ids of the runs with a running attempt."""
        return self._attempts.runs

    def holder(self, flow: str, order_key: str) -> int | None:
        """Return the seq of the run that holds an ordering key, if one does."""
        held_by = self._admission.holder(flow, order_key)
        return self._attempts.running_on_key(flow, order_key) if held_by == RUNNING else held_by

    def reread_queue(self, flow: str) -> None:
        """Read a flow's queue from the journal again: its runs were changed there."""
        self._scheduler.reread(flow)
        self._due.recheck()

    def recheck_due(self) -> None:
        """Check for due runs now: waiting runs were woken, or the clock was set."""
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

    def release_key(self, run: Run) -> None:
        """Release the ordering key of a run that is not running: it was cancelled or dropped."""
        if run.order_key is not None and self._scheduler.find(run.flow) is not None:
            self._scheduler.release_key(run.flow, run.order_key, run.seq)

    # ------------------------------------------------------------ the loop

    async def run(self, started: Callable[[], None]) -> None:
        """Dispatch until `stop`; raise `JournalBroken` when outcomes can no longer be written."""
        await self.hold_keys()
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
            await self._scheduler.refill(self._claiming)
            chosen = self._choose()
            if chosen:
                await self._claim(chosen)
                self._work.set()

    def _choose(self) -> list[Queued]:
        return [] if self._stopping else self._scheduler.choose()

    async def _claim(self, chosen: list[Queued]) -> None:
        self._claiming.update(run.seq for run in chosen)
        for run in chosen:
            self._scheduler.queue(run.flow).starting += 1
        try:
            claimed = await self._journal.claim(
                [run.seq for run in chosen],
                now=self._now(),
                untouched={run.seq: run.claimed for run in chosen if run.claimed is not None},
            )
        except JournalFull:
            for run in chosen:
                self._scheduler.release(
                    run.flow, run.order_key, run.limit_key, isolated=run.isolated
                )
                self._scheduler.known_due.discard(run.seq)
            for flow in {run.flow for run in chosen}:
                self.reread_queue(flow)
            await until_writable(self._journal)
            return
        finally:
            self._claiming.clear()
            for run in chosen:
                self._scheduler.queue(run.flow).starting -= 1
        for run in chosen:
            self._scheduler.known_due.discard(run.seq)
        taken = {run.claim.run_seq for run in claimed}
        for each in claimed:
            self._start(each)
        for run in chosen:
            if run.seq not in taken:  # cancelled meanwhile
                self._scheduler.release(
                    run.flow, run.order_key, run.limit_key, isolated=run.isolated
                )

    # ------------------------------------------------------------ one attempt

    def _start(self, run: ClaimedRun) -> None:
        if self._tasks is None:
            raise RuntimeError("the dispatcher is not running")
        if self._started_meanwhile is not None:
            self._started_meanwhile.add(run.claim.run_seq)
        self._attempts.start(self._tasks, run, self._flows.get(run.flow))

    def release_early(self, run: ClaimedRun) -> bool:
        """Release the slot of an attempt whose outcome is being written; False if it is kept.

        The next run in the slot is written after that outcome, so no more runs are running on disk
        than there are slots, and a busy slot costs one commit per run instead of two. The slot is
        kept with an ordering key, whose next run must not start before the outcome is on disk, and
        by an isolated run, which runs alone until its outcome is on disk.
        """
        if run.order_key is not None or run.isolated:
            return False
        self._scheduler.release(run.flow, None, run.limit_key, isolated=run.isolated)
        self._work.set()
        return True

    def retake(self, run: ClaimedRun) -> None:
        """Take the slot back: the outcome could not be written."""
        self._admission.retake(run.flow, run.limit_key, isolated=run.isolated)

    def stop_starting(self) -> None:
        """Start nothing more: an unexpected error is about to end the process.

        Every run that is running at its end counts a crash.
        """
        self._stopping = True

    def attempt_ended(
        self,
        run: ClaimedRun,
        flow: AnyFlow | None,
        outcome: Outcome | None,
        *,
        slot_released: bool,
    ) -> None:
        """Release the slot of an attempt; a run that is not finished keeps its ordering key."""
        state = None if outcome is None else outcome.state
        continues = state in (RunState.RETRYING, RunState.WAITING)
        blocks = state is RunState.FAILED and flow is not None and flow.on_dead == "block"
        if not slot_released:
            self._scheduler.release(
                run.flow,
                run.order_key,
                run.limit_key,
                isolated=run.isolated,
                keep_order_for=run.claim.run_seq if continues or blocks else None,
            )
        if continues or run.event.type == CALLED:
            self._due.recheck()
        if state is RunState.QUEUED and not self._stopping:
            self.reread_queue(run.flow)
        self._work.set()


def _first_claimed(
    run: NewRun,
    event: Event,
    stored: Appended,
    arguments: Mapping[str, Any] | None,
    now: datetime,
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
        limit_key=run.limit_key,
        due_at=now,
        arguments=arguments,
    )
