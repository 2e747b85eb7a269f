"""The dispatcher claims due runs and has them executed (`attempts`), as slots come free.

Guarantees: a run executes only under a claim that is on disk; its slot is held until its outcome
is on disk; runs of a flow start in arrival order; memory holds a bounded window of any backlog.
On a full disk nothing new is claimed until writing works again. Not here: what a run does
(executor), whose turn it is (queues), when a run is due (due) and who may run (admission).
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
from turnout.service.flowcontrol.admission import NEWBORN, RUNNING, Admission
from turnout.service.journal.contract import Journal
from turnout.service.journal.records import Appended, Claim, NewRun, Queued
from turnout.service.project import AnyFlow
from turnout.service.telemetry.metrics import Metrics

from .attempts import Attempts, Ended, until_writable
from .backpressure import Pull
from .due import DueRuns
from .executor import Executor
from .scheduling import Queues

KEPT_BODY_BYTES = 8 * 1024
"""Events up to this size stay in memory with the head of their flow's queue."""

UNWIND_SECONDS = 2.0


class Dispatcher:
    """Keeps every free slot busy with the oldest run that may use it."""

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
        self._queues = Queues(journal, admission)
        self._due = DueRuns(journal, self._queues, now=now)
        self._work = self._queues.work
        self._claiming: set[int] = set()
        self._ran: set[int] | None = None  # while keys are read: see `hold_keys`
        self._stopping = False
        self._quiet = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None

    # ------------------------------------------------------------ the project

    def serve(self, flows: Iterable[AnyFlow], paused: Iterable[str]) -> None:
        """Take the flows of a (re)loaded project; running attempts end on the code they began."""
        self._flows = {flow.name: flow for flow in flows}
        self._queues.serve(self._flows.values(), paused)
        self._due.adopt_orphans()

    def adopt(self, was: str, name: str) -> None:
        """Count what runs or waits under a flow's old name for its new one (a reload's `was=`).

        For while the journal renames the runs: the new lane must be paused, and read afresh after.
        """
        self._queues.adopt(was, name)
        self._due.adopt_orphans()

    async def hold_keys(self) -> None:
        """Hold the ordering keys of runs that have one without running, as the journal tells.

        Asked twice: a run may have let go of its key after the first answer was read. And again for
        those that ran meanwhile: what is said of them may be wrong by now.
        """
        self._ran = self._attempts.seqs
        read = await self._journal.held_keys()
        for flow, key, seq, dead in read:
            known = self._flows.get(flow)
            if known is not None and (not dead or known.on_dead == "block"):
                self._queues.hold(flow, key, seq)
            elif known is not None and seq not in self._ran:  # a reload may have changed it
                self._queues.let_go(flow, key, seq)
        unsure = {(flow, key, seq) for flow, key, seq, _dead in read if flow in self._flows}
        while unsure:
            self._ran = self._attempts.seqs
            unsure -= {(flow, key, seq) for flow, key, seq, _ in await self._journal.held_keys()}
            for flow, key, seq in unsure.copy():
                if seq not in self._ran:
                    self._queues.let_go(flow, key, seq)
                if self._admission.holder(flow, key) != seq:
                    unsure.discard((flow, key, seq))
        self._ran = None

    def pause(self, flow: str) -> None:
        """Start no more runs of a flow; those running go on."""
        self._queues.lane(flow).paused = True

    def resume(self, flow: str) -> None:
        """Start runs of a paused flow again."""
        lane = self._queues.lane(flow)
        lane.paused = False
        self._queues.wake(lane)

    @contextmanager
    def holding(self, flows: Iterable[str]) -> Iterator[None]:
        """Start no run of these flows inside; their queues are read afresh at its end.

        What is being claimed as it begins has begun by the time the journal answers what is asked
        of it then.
        """
        lanes = [self._queues.lane(flow) for flow in flows]
        for lane in lanes:
            lane.held += 1
        try:
            yield
        finally:
            for lane in lanes:
                lane.held -= 1
                self.look_again(lane.flow)

    def starts(self, flow: str) -> bool:
        """Whether queued runs of a flow start as soon as they can."""
        return not (self._stopping or self._queues.lane(flow).paused)

    # ------------------------------------------------------------ new runs

    def reserve(self, run: NewRun, flow: AnyFlow) -> None:
        """Decide, before it is written, whether a new run is born running or queued."""
        if run.state is not RunState.QUEUED:
            return
        lane = self._queues.lane(flow.name)
        run.flow = lane.flow  # it may have been renamed since the run was made
        if (
            not self._stopping
            and lane.idle
            and not lane.has_parked(run.order_key, run.limit_key)
            and self._admission.admit(flow.name, run.order_key, run.limit_key, NEWBORN, False)
            is None
        ):
            run.state = RunState.RUNNING
            lane.starting += 1
        else:
            lane.arriving += 1

    def unreserve(self, run: NewRun) -> None:
        """Take back a reservation: the run was not written."""
        if run.state is RunState.RUNNING:
            self._queues.lane(run.flow).starting -= 1
            self._queues.release(run.flow, run.order_key, run.limit_key, isolated=False)
            self._work.set()
        elif run.state is RunState.QUEUED:
            self._queues.lane(run.flow).arriving -= 1

    def born(
        self,
        run: NewRun,
        event: Event,
        stored: Appended,
        arguments: Mapping[str, Any] | None,
        now: datetime,
    ) -> None:
        """Start, or line up, a run that is on disk `now`."""
        if run.state is RunState.RUNNING:
            self._queues.lane(run.flow).starting -= 1
            self._queues.moved.set()
            self._start(_first_claim(run, event, stored, arguments, now))
        elif run.state is RunState.QUEUED:
            lane = self._queues.lane(run.flow)
            keeps = lane.takes_arrivals and len(event.body) <= KEPT_BODY_BYTES
            lane.arriving -= 1
            self._queues.arrived(
                Queued(
                    seq=run.seq,
                    flow=run.flow,
                    order_key=run.order_key,
                    limit_key=run.limit_key,
                    due_at=None,
                    isolated=False,
                    claim=_first_claim(run, event, stored, arguments, now) if keeps else None,
                )
            )

    def pull(self) -> Pull:
        """Return what paces a trigger whose source keeps what is not read yet."""
        return Pull(self._queues, self._admission)

    @property
    def running(self) -> frozenset[str]:
        """The ids of the runs whose attempts run now."""
        return self._attempts.runs

    def holder(self, flow: str, order_key: str) -> int | None:
        """Return the seq of the run that holds an ordering key, if one does."""
        held_by = self._admission.holder(flow, order_key)
        return self._attempts.on_key(flow, order_key) if held_by == RUNNING else held_by

    def look_again(self, flow: str) -> None:
        """Read a flow's queue from the journal afresh: an operator put runs into it."""
        self._queues.forget(flow)
        self._due.look()

    def look_due(self) -> None:
        """Look for due runs now: something woke runs that were waiting, or the clock was set."""
        self._due.look()

    def cancel(self, run: Run) -> None:
        """Stop a run whose cancel is on disk: cooperatively, at its next await.

        One that is to be undone is in its flow's queue, and keeps its ordering key.
        """
        self._due.look()  # a parent may have waited for it
        stopped = self._attempts.cancel(run.id)
        if run.state is RunState.QUEUED:
            self.look_again(run.flow)
        elif not stopped:
            self.let_go(run)

    def let_go(self, run: Run) -> None:
        """Free the ordering key a run holds without running: it was cancelled or dropped."""
        if run.order_key is not None and self._queues.find(run.flow) is not None:
            self._queues.let_go(run.flow, run.order_key, run.seq)

    # ------------------------------------------------------------ the loop

    async def run(self, started: Callable[[], None]) -> None:
        """Dispatch until `stop`; raises `JournalBroken` when outcomes can no longer be kept."""
        await self.hold_keys()
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._attempts.begin()
            claiming = tasks.create_task(self._claim_runs())
            watching = tasks.create_task(self._due.watch())
            started()
            try:
                await self._quiet.wait()
            except asyncio.CancelledError:
                self.broke()
                raise
            claiming.cancel()
            watching.cancel()

    async def stop(self, grace: timedelta) -> int:
        """Claim nothing more, let runs end within `grace`, hand the rest back, spending no attempt.

        Returns how many are stuck in threads that cannot be ended: the process must be, with
        `os._exit`, and `run` does not return.
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
        while self._attempts or self._queues.starting:
            self._work.clear()
            await self._work.wait()

    async def _claim_runs(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            if self._stopping:
                self._work.set()  # for `stop`, which may wait to hear that nothing is claimed
                return
            await self._queues.refill(self._claiming)
            chosen = self._choose()
            if chosen:
                await self._claim(chosen)
                self._work.set()

    def _choose(self) -> list[Queued]:
        return [] if self._stopping else self._queues.choose()

    async def _claim(self, chosen: list[Queued]) -> None:
        self._claiming.update(run.seq for run in chosen)
        for run in chosen:
            self._queues.lane(run.flow).starting += 1
        try:
            claims = await self._journal.claim(
                [run.seq for run in chosen],
                now=self._now(),
                untouched={run.seq: run.claim for run in chosen if run.claim is not None},
            )
        except JournalFull:
            for run in chosen:
                self._queues.release(run.flow, run.order_key, run.limit_key, isolated=run.isolated)
                self._queues.lined_up.discard(run.seq)
            for flow in {run.flow for run in chosen}:
                self.look_again(flow)
            await until_writable(self._journal)
            return
        finally:
            self._claiming.clear()
            for run in chosen:
                self._queues.lane(run.flow).starting -= 1
        for run in chosen:
            self._queues.lined_up.discard(run.seq)
        taken = {claim.run_seq for claim in claims}
        for claim in claims:
            self._start(claim)
        for run in chosen:
            if run.seq not in taken:  # cancelled meanwhile
                self._queues.release(run.flow, run.order_key, run.limit_key, isolated=run.isolated)

    # ------------------------------------------------------------ one attempt

    def _start(self, claim: Claim) -> None:
        if self._tasks is None:
            raise RuntimeError("the dispatcher is not running")
        if self._ran is not None:
            self._ran.add(claim.run_seq)
        self._attempts.start(self._tasks, claim, self._flows.get(claim.flow))

    def leaves(self, claim: Claim) -> bool:
        """Give back a slot whose attempt has ended and whose outcome is on its way to disk.

        Whatever takes the slot is written behind that outcome, so no more runs are ever running
        on disk than there are slots, and a busy slot costs one commit a run instead of two. Not
        with an ordering key: the next run of the key must not start before the outcome is sure.
        Nor for an isolated run, which runs alone to its very end.
        """
        if claim.order_key is not None or claim.isolated:
            return False
        self._queues.release(claim.flow, None, claim.limit_key, isolated=claim.isolated)
        self._work.set()
        return True

    def stays(self, claim: Claim) -> None:
        """Take the slot back: the outcome could not be written yet."""
        self._admission.retake(claim.flow, claim.limit_key, isolated=claim.isolated)

    def broke(self) -> None:
        """Start nothing more: the process is about to end by an error nobody expected.

        Whatever is running then is counted as one that may have ended it.
        """
        self._stopping = True

    def over(
        self, claim: Claim, flow: AnyFlow | None, outcome: Outcome | None, *, left: bool
    ) -> None:
        """Give back the slot of an attempt; its ordering key stays with a run that goes on."""
        state = None if outcome is None else outcome.state
        goes_on = state in (RunState.RETRYING, RunState.WAITING)
        blocks = state is RunState.FAILED and flow is not None and flow.on_dead == "block"
        if not left:
            self._queues.release(
                claim.flow,
                claim.order_key,
                claim.limit_key,
                isolated=claim.isolated,
                keep_order_for=claim.run_seq if goes_on or blocks else None,
            )
        if goes_on or claim.event.type == CALLED:
            self._due.look()
        if state is RunState.QUEUED and not self._stopping:
            self.look_again(claim.flow)
        self._work.set()


def _first_claim(
    run: NewRun,
    event: Event,
    stored: Appended,
    arguments: Mapping[str, Any] | None,
    now: datetime,
) -> Claim:
    return Claim(
        run_seq=run.seq,
        run_id=run.id,
        flow=run.flow,
        event_seq=stored.event_seq,
        event=event,
        token=1,
        attempt=1,
        crashes=0,
        replay=run.replay,
        order_key=run.order_key,
        limit_key=run.limit_key,
        due_at=now,
        arguments=arguments,
    )
