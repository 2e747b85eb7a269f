"""Claiming: the runs whose turn it is are claimed in the journal, then they start.

On a full disk nothing is claimed until writing works again. Not here: whose turn it is
(`scheduling`), and runs that start on insert (`dispatcher`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from turnout.service.domain.errors import JournalFull
from turnout.service.domain.run import Run
from turnout.service.journal.contract import Work
from turnout.service.journal.records import ClaimedRun, Queued

from .attempts import until_writable
from .causes import first_cause
from .filling import Filling
from .scheduling import Scheduler
from .start_timeouts import end_late


class Claiming:
    """Claims runs for free slots.

    `start` is called with each of them, `timed_out` with those that have waited too long, and
    `reread` with a flow whose queue must be read again.
    """

    def __init__(
        self,
        journal: Work,
        scheduler: Scheduler,
        filling: Filling,
        *,
        now: Callable[[], datetime],
        is_stopping: Callable[[], bool],
        start: Callable[[Queued, ClaimedRun], None],
        timed_out: Callable[[Sequence[Run]], None],
        reread: Callable[[str], None],
    ) -> None:
        self._journal = journal
        self._scheduler = scheduler
        self._filling = filling
        self._now = now
        self._is_stopping = is_stopping
        self._start = start
        self._timed_out = timed_out
        self._reread = reread

    async def run(self) -> None:
        """Claim runs whenever one may start, until the service stops."""
        work = self._scheduler.work
        while True:
            await work.wait()
            work.clear()
            if self._is_stopping():
                work.set()  # for whoever waits until the service is idle
                return
            await self._filling.refill()
            chosen = [] if self._is_stopping() else self._scheduler.choose(self._now())
            if chosen:
                await self._claim(chosen)
                work.set()
            if self._scheduler.late:
                await self._end_late()
                work.set()

    async def _claim(self, chosen: list[Queued]) -> None:
        for entered in chosen:
            queue = self._scheduler.queue(entered.flow)
            queue.begin_starting()
            entered.cause = first_cause(entered, queue)
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
            await self._until_writable({entered.flow for entered in chosen})
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
            await self._until_writable({each.flow for each in late})
        else:
            self._timed_out(ended)

    async def _until_writable(self, flows: set[str]) -> None:
        """Read the queues of flows again that were not claimed from, and wait for the disk."""
        for flow in flows:
            self._reread(flow)
        await until_writable(self._journal)
