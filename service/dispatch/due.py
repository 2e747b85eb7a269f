"""Due runs: scheduled, retrying and waiting runs enter their queue at their due time.

The journal knows when a run is due. It is read at the next due time, and whenever a run may have
become due sooner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime

from turnout.service.journal.contract import Work
from turnout.service.journal.records import Queued

from .filling import Filling
from .queue import Queue
from .scheduling import Scheduler

BATCH = 500
MAX_PAUSE_SECONDS = 60.0
MIN_PAUSE_SECONDS = 0.05
KNOWN_PAUSE_SECONDS = 1.0
"""Due runs in memory wait for a gate, which asks them itself: look again, but not often."""


class DueRuns:
    """Puts due runs into the queues of their flows; `orphans` are due runs of unserved flows."""

    def __init__(
        self, journal: Work, scheduler: Scheduler, filling: Filling, *, now: Callable[[], datetime]
    ) -> None:
        self._journal = journal
        self._scheduler = scheduler
        self._filling = filling
        self._now = now
        self._recheck = asyncio.Event()
        self.orphans: set[int] = set()
        scheduler.due_lost = self.recheck

    def recheck(self) -> None:
        """Check again now: runs may have become due, or the clock was set."""
        self._recheck.set()

    def adopt_orphans(self) -> None:
        """Check again for runs whose flow was not served: a reload may have restored it."""
        self.orphans.clear()
        self.recheck()

    async def watch(self) -> None:
        """Add runs to their queues as they become due, until cancelled."""
        while True:
            self._recheck.clear()
            epochs, read_at = self._scheduler.start_reading_due(), self._now()
            found = await self._read(read_at, epochs)
            self._scheduler.due_read(epochs)  # now that all are known: the last may be their first
            seconds = await self._seconds_until_next(
                read_at, KNOWN_PAUSE_SECONDS if found else None
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):  # before 3.12, wait_for may swallow a cancel
                    await self._recheck.wait()

    async def _read(self, read_at: datetime, epochs: Mapping[Queue, int]) -> bool:
        """Add every run that is due by an instant and not known; whether any run is due.

        A queue that is cleared meanwhile is read again (`due_lost`), and gets nothing of this read:
        what an operator has queued again since would be in it twice, and start twice.
        """
        # A run that is claimed during a read is still in its answer.
        known, last = self._scheduler.known_due | self.orphans, None
        while True:
            rows = await self._journal.due(read_at, BATCH, after=last)
            for row in rows:
                if row.seq not in known:
                    await self._add(row, epochs)
            if len(rows) < BATCH:
                return last is not None or bool(rows)
            last = rows[-1]

    async def _add(self, row: Queued, epochs: Mapping[Queue, int]) -> None:
        queue = self._scheduler.find(row.flow)
        if queue is None:
            self.orphans.add(row.seq)
            return
        for complete in await self._filling.complete(queue, [row]):
            if queue.epoch == epochs.get(queue) and queue.is_queued(complete):
                self._scheduler.add_due(complete, queue)

    async def _seconds_until_next(self, read_at: datetime, at_most: float | None) -> float:
        due_at = await self._journal.next_due_at(read_at)
        longest = MAX_PAUSE_SECONDS if at_most is None else at_most
        if due_at is None:
            return longest
        return min(max((due_at - self._now()).total_seconds(), MIN_PAUSE_SECONDS), longest)
