"""Runs whose time comes: scheduled, retrying and waiting ones, lined up when they are due.

When a run is due is a fact in the journal; here it is only looked for, at that instant, and
whenever something may have made a run due sooner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from turnout.service.journal.contract import Journal

from .scheduling import Queues

BATCH = 500
MOST_SECONDS = 60.0
LEAST_SECONDS = 0.05
"""Runs already lined up are due in the past: look again soon, not at once."""


class DueRuns:
    """Lines up runs that are due."""

    def __init__(self, journal: Journal, queues: Queues, *, now: Callable[[], datetime]) -> None:
        self._journal = journal
        self._queues = queues
        self._now = now
        self._sooner = asyncio.Event()
        self.orphans: set[int] = set()

    def look(self) -> None:
        """Look again now: runs may have become due, or the clock was set."""
        self._sooner.set()

    def adopt_orphans(self) -> None:
        """Look again for runs whose flow was not served: a reload may have brought it back."""
        self._queues.lined_up -= self.orphans
        self.orphans.clear()
        self.look()

    async def watch(self) -> None:
        """Line up runs as they become due, until cancelled."""
        while True:
            self._sooner.clear()
            known = self._queues.lined_up
            before = known.copy()  # one claimed meanwhile was due when the journal was read
            rows = await self._journal.due(self._now(), len(known) + BATCH)
            fresh = [row for row in rows if row.seq not in known and row.seq not in before]
            for row in fresh:
                lane = self._queues.find(row.flow)
                if lane is None:
                    known.add(row.seq)
                    self.orphans.add(row.seq)
                else:
                    self._queues.due(row, lane)
            if fresh:
                continue
            pause = await self._until_next()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):  # wait_for may swallow a cancel (before 3.12)
                    await self._sooner.wait()

    async def _until_next(self) -> float:
        due_at = await self._journal.next_due_at()
        if due_at is None:
            return MOST_SECONDS
        return min(max((due_at - self._now()).total_seconds(), LEAST_SECONDS), MOST_SECONDS)
