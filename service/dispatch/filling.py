"""Filling queues: what they lack in memory is read from the journal.

Not here: what a queue keeps of it (`queue`, `head`, `blocked`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from turnout.service.journal.contract import Work
from turnout.service.journal.records import Queued

from . import memory
from .missing_keys import Failed, add_missing_keys
from .queue import Queue
from .scheduling import Scheduler


class Filling:
    """Reads queued runs; `failed` is called when one has failed that a newer rule was asked for."""

    def __init__(
        self, journal: Work, scheduler: Scheduler, now: Callable[[], datetime], failed: Failed
    ) -> None:
        self._journal = journal
        self._scheduler = scheduler
        self._now = now
        self._failed = failed

    async def refill(self) -> None:
        """Read from the journal what active queues lack in memory."""
        for queue, level in self._scheduler.active():
            while queue.blocked.wakeups:
                await self._fetch(queue)
            if queue.lacks(level):
                await self._read(queue, level)

    async def _read(self, queue: Queue, level: int) -> None:
        """Read the next queued runs of a class from the journal."""
        after, epoch = queue.start_reading(level)
        only, passed_over = level if queue.classed else None, queue.keys_to_pass_over(level)
        if passed_over:
            rows, up_to, more = await self._journal.queued_past(
                queue.flow, after, memory.WINDOW, passed_over, only
            )
        else:
            rows = await self._journal.queued(queue.flow, after, memory.WINDOW, only)
            up_to, more = rows[-1].arrival if rows else 0, len(rows) == memory.WINDOW
        complete = await self.complete(queue, rows)
        queue.finish_reading(
            level, complete, up_to=up_to, more=more, epoch=epoch, passed_over=bool(passed_over)
        )

    async def complete(self, queue: Queue, rows: Sequence[Queued]) -> Sequence[Queued]:
        """Give runs the keys of rules that are newer than they are; return those that have them."""
        lacking = [row for row in rows if queue.gates.lacks_keys(row)]
        if not lacking or queue.gates.keyed is None:
            return rows
        have = await add_missing_keys(
            self._journal, queue.gates.keyed, lacking, self._now, self._failed
        )
        failed = {row.seq for row in lacking} - {row.seq for row in have}
        return [row for row in rows if row.seq not in failed]

    async def _fetch(self, queue: Queue) -> None:
        """Read runs blocked by an evicted key from the journal, enough to wake as many as may."""
        key, wakeups, epoch = queue.start_fetching()
        rule_id, text, level = key
        only = level if queue.classed and level else None
        count, after, more = memory.WINDOW // 4, wakeups.after, True
        found: list[Queued] = []
        while more and sum(queue.would_wait(row, key) for row in found) < wakeups.count:
            rows = await self._journal.queued_for_key(queue.flow, rule_id, text, count, after, only)
            held = {run.seq for run in queue.rows()}
            found += [row for row in rows if row.seq not in held]
            after = rows[-1].arrival if rows else after
            more = len(rows) == count and after < queue.ends_before(key)
        up_to = after if more else None
        queue.finish_fetching(key, found, up_to=up_to, wakeups=wakeups.count, epoch=epoch)
