"""Attempts that are running: each claimed run executes in a task of its own and is recorded.

Guarantees: an attempt is over only when its outcome is on disk, or when the journal says that it
no longer counts (an operator cancelled the run); a full disk is waited for. Not here: who may run
and when (dispatcher), and what a run does (executor).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context, copy_context
from datetime import datetime, timedelta
from typing import Any, Protocol

from turnout.service.domain.errors import ClaimLost, JournalFull
from turnout.service.domain.run import FINISHED, Outcome, RunState
from turnout.service.journal.contract import Journal
from turnout.service.journal.records import Claim
from turnout.service.project import AnyFlow
from turnout.service.telemetry.logs import get_logger
from turnout.service.telemetry.meters import Counter, Histogram
from turnout.service.telemetry.metrics import Metrics

from .executor import Executor

log = get_logger("turnout.attempts")


class Slots(Protocol):
    """Whoever counts the slots that attempts hold."""

    def leaves(self, claim: Claim) -> bool:
        """Hear that an attempt has ended and its outcome is being written; True gives its slot."""

    def stays(self, claim: Claim) -> None:
        """Hear that the outcome could not be written: the slot is held again."""

    def over(
        self, claim: Claim, flow: AnyFlow | None, outcome: Outcome | None, *, left: bool
    ) -> None:
        """Hear that an attempt is over, before anybody else; `left`: its slot is given already.

        Without an outcome it no longer counted.
        """

    def broke(self) -> None:
        """Hear that an attempt ends the process by an error nobody expected."""


Ended = Callable[[Claim, Outcome], Awaitable[None]]

HANDED_BACK = Outcome(state=RunState.QUEUED, counts=False)
PROBE_SECONDS = 1.0
_NONE = timedelta(0)


class _Attempt:
    """One running attempt: `executing` while the flow's own code may run, `left` without a slot."""

    __slots__ = ("before", "cancelled", "claim", "executing", "left", "task")

    def __init__(self, claim: Claim, before: _Attempt | None) -> None:
        self.claim = claim
        self.before = before
        self.task: asyncio.Task[None] | None = None
        self.executing = False
        self.cancelled = False
        self.left = False

    def cancel(self) -> None:
        self.cancelled = True
        if self.executing and self.task is not None:
            self.task.cancel()


class _Meters:
    """A flow's labelled metrics, looked up once."""

    __slots__ = ("_attempts", "_by_state", "flow", "run_seconds", "wait_seconds")

    def __init__(self, metrics: Metrics, flow: str) -> None:
        self.flow = flow
        self.run_seconds: Histogram = metrics.run_seconds.labels(flow)
        self.wait_seconds: Histogram = metrics.run_wait_seconds.labels(flow)
        self._attempts = metrics.attempts
        self._by_state: dict[RunState, Counter] = {}

    def count(self, state: RunState) -> None:
        counter = self._by_state.get(state)
        if counter is None:
            counter = self._by_state[state] = self._attempts.labels(self.flow, state)
        counter.inc()


class Attempts:
    """Runs claims; `slots` hears when each is over, `ended` tells whoever waits for the run."""

    def __init__(
        self,
        journal: Journal,
        executor: Executor,
        metrics: Metrics,
        slots: Slots,
        *,
        now: Callable[[], datetime],
        ended: Ended,
    ) -> None:
        self._journal = journal
        self._executor = executor
        self._metrics = metrics
        self._now = now
        self._slots = slots
        self._ended = ended
        self._owner: asyncio.Task[Any] | None = None
        self._context = Context()
        self._running: dict[str, _Attempt] = {}
        self._meters: dict[str, _Meters] = {}

    def __len__(self) -> int:
        return len(self._running)

    @property
    def runs(self) -> frozenset[str]:
        """The ids of the runs whose attempts run now."""
        return frozenset(self._running)

    @property
    def seqs(self) -> set[int]:
        """The seqs of the runs whose attempts run now."""
        return {attempt.claim.run_seq for attempt in self._running.values()}

    def on_key(self, flow: str, order_key: str) -> int | None:
        """Return the seq of the run that runs under an ordering key, if one does."""
        for attempt in self._running.values():
            claim = attempt.claim
            if claim.flow == flow and claim.order_key == order_key:
                return claim.run_seq
        return None

    def begin(self) -> None:
        """Say that attempts run below the current task, whose cancel is the service's end."""
        self._owner, self._context = asyncio.current_task(), copy_context()

    def _is_ending(self) -> bool:
        return self._owner is None or self._owner.cancelling() > 0

    def start(self, tasks: asyncio.TaskGroup, claim: Claim, flow: AnyFlow | None) -> None:
        """Execute a claim; without a flow (a reload took it away) the run is handed back.

        A run that was cancelled and queued again may have an attempt that has not ended yet, in a
        thread or a `finally`: the new one begins after it. It knows nothing of whoever started it,
        which may be the attempt of another run.
        """
        before = self._running.get(claim.run_id)
        if before is not None and not before.cancelled:
            before.cancel()
        attempt = _Attempt(claim, before)
        self._running[claim.run_id] = attempt
        attempt.task = tasks.create_task(self._run(attempt, flow), context=self._context.copy())

    def cancel(self, run_id: str) -> bool:
        """Stop an attempt at its next await; False when the run is not running."""
        attempt = self._running.get(run_id)
        if attempt is None:
            return False
        attempt.cancel()
        return True

    def cancel_all(self) -> None:
        """Stop every attempt at its next await; each run is handed back."""
        for attempt in list(self._running.values()):
            attempt.claim.released = True
            attempt.cancel()

    async def abandon(self) -> int:
        """Hand back the runs of attempts that do not end; returns how many there are."""
        for attempt in list(self._running.values()):
            claim = attempt.claim
            log.warning("run.abandoned", flow=claim.flow, run=claim.run_id)
            at = self._now()
            with suppress(ClaimLost, JournalFull):
                await self._journal.record(claim, HANDED_BACK, started_at=at, now=at)
        return len(self._running)

    async def _run(self, attempt: _Attempt, flow: AnyFlow | None) -> None:
        try:
            await self._run_to_its_end(attempt, flow)
        except asyncio.CancelledError:
            raise
        except BaseException:
            # Before anybody takes the slot: what starts now would be blamed for the end too.
            self._slots.broke()
            raise

    async def _run_to_its_end(self, attempt: _Attempt, flow: AnyFlow | None) -> None:
        claim = attempt.claim
        recorded: Outcome | None = None
        try:
            if attempt.before is not None and attempt.before.task is not None:
                await asyncio.wait([attempt.before.task])
                attempt.before = None
            started_at = self._now()
            outcome = await self._execute(attempt, flow)
            ended_at = await self._record(attempt, outcome, started_at)
            if ended_at is not None:
                recorded = outcome
            became = recorded or await self._lost(claim)
        finally:
            if self._running.get(claim.run_id) is attempt:
                del self._running[claim.run_id]
            self._slots.over(claim, flow, recorded, left=attempt.left)
        self._observe(claim, became.state, started_at, ended_at or self._now())
        await self._ended(claim, became)

    async def _lost(self, claim: Claim) -> Outcome:
        """Return what became of a run whose attempt no longer counts.

        It was cancelled, but goes on where there is something to undo or it was retried.
        """
        run = await self._journal.run(claim.run_id)
        is_over = run is None or run.state in FINISHED
        return Outcome(state=RunState.CANCELLED) if is_over else HANDED_BACK

    async def _execute(self, attempt: _Attempt, flow: AnyFlow | None) -> Outcome:
        if flow is None or attempt.cancelled:
            return HANDED_BACK
        attempt.executing = True
        try:
            return await self._executor.execute(
                attempt.claim, flow, lambda: attempt.cancelled or self._is_ending()
            )
        except ClaimLost:  # from a step's record: an operator was quicker, as `_record` will hear
            return HANDED_BACK
        except asyncio.CancelledError:
            if not attempt.cancelled:
                raise
            return HANDED_BACK
        finally:
            attempt.executing = False
            if attempt.cancelled and attempt.task is not None:
                attempt.task.uncancel()

    async def _record(
        self, attempt: _Attempt, outcome: Outcome, started_at: datetime
    ) -> datetime | None:
        """Have the outcome on disk; returns the end it tells, None when it no longer counts."""
        claim = attempt.claim
        while True:
            attempt.left = self._slots.leaves(claim)
            now = self._now()
            try:
                await self._journal.record(claim, outcome, started_at=started_at, now=now)
            except ClaimLost:
                return None
            except JournalFull:
                if attempt.left:
                    self._slots.stays(claim)
                await until_writable(self._journal)
            else:
                return now

    def _observe(
        self, claim: Claim, state: RunState, started_at: datetime, ended_at: datetime
    ) -> None:
        meters = self._meters.get(claim.flow)
        if meters is None:
            meters = self._meters[claim.flow] = _Meters(self._metrics, claim.flow)
        meters.count(state)
        meters.run_seconds.observe((ended_at - started_at).total_seconds())
        waited = started_at - claim.due_at
        meters.wait_seconds.observe(waited.total_seconds() if waited > _NONE else 0.0)


async def until_writable(journal: Journal) -> None:
    """Wait until the journal takes writes again; raises `JournalBroken` when it never will."""
    while True:
        try:
            await journal.probe()
        except JournalFull:
            await asyncio.sleep(PROBE_SECONDS)
        else:
            return
