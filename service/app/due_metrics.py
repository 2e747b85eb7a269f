"""The metrics of what waits: due and scheduled runs, what is wanted, slots of named limits.

They are counted in the journal when somebody asks for metrics, on a reading thread. Counting a
million queued runs takes up to a second, so a count is used again: the longer, the longer it took.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime

from turnout.service.dispatch.dispatcher import Dispatcher
from turnout.service.domain.errors import JournalError
from turnout.service.journal.contract import Reads
from turnout.service.journal.records import DueCount
from turnout.service.project import Project
from turnout.service.telemetry.metrics import Metrics

from .wanted import Wanted

_USED_AGAIN_SECONDS = 2.0
_SHARE = 20  # of the time, at most one part in so many goes into counting


class DueMetrics:
    """Sets the gauges of what waits."""

    def __init__(
        self,
        journal: Reads,
        dispatcher: Dispatcher,
        metrics: Metrics,
        *,
        project: Callable[[], Project],
        wanted: Wanted,
        now: Callable[[], datetime],
    ) -> None:
        self._journal = journal
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._project = project
        self._wanted = wanted
        self._now = now
        self._lock = asyncio.Lock()
        self._next_at = float("-inf")

    async def refresh(self) -> bool:
        """Count anew, unless that was done just now; returns whether it was tried.

        If the disk fails the last count stays.
        """
        async with self._lock:
            loop = asyncio.get_running_loop()
            began = loop.time()
            if began < self._next_at:
                return False
            with suppress(JournalError):
                now = self._now()
                counts = {each.flow: each for each in await self._journal.due_counts(now)}
                wanted = await self._wanted.count(counts)
                self._show(counts, now)
                self._metrics.wanted.set(wanted)
                ended = loop.time()
                self._next_at = ended + max(_USED_AGAIN_SECONDS, _SHARE * (ended - began))
            return True

    def _show(self, counts: Mapping[str, DueCount], now: datetime) -> None:
        """Show each flow that is served or has runs; a paused one has none that could start."""
        metrics = self._metrics
        for gauge in (metrics.due_runs, metrics.oldest_due_seconds, metrics.scheduled_runs):
            gauge.clear()
        for flow in {*self._project().flows, *counts}:
            count = counts.get(flow, DueCount(flow, 0, None, 0))
            is_due = count.oldest is not None and self._dispatcher.may_start(flow)
            metrics.scheduled_runs.labels(flow).set(count.scheduled)
            metrics.due_runs.labels(flow).set(count.due if is_due else 0)
            seconds = (now - count.oldest).total_seconds() if is_due and count.oldest else 0
            metrics.oldest_due_seconds.labels(flow).set(max(seconds, 0))
        self._show_limits(counts)

    def _show_limits(self, counts: Mapping[str, DueCount]) -> None:
        """Show the limits that flows share by a name."""
        metrics = self._metrics
        for gauge in (metrics.limit_used, metrics.limit_max, metrics.limit_due):
            gauge.clear()
        for limit, flows in self._dispatcher.named_limits():
            due = sum(counts[flow].due for flow in flows if flow in counts)
            metrics.limit_used.labels(limit.named).set(sum(limit.used().values()))
            metrics.limit_max.labels(limit.named).set(limit.count)
            metrics.limit_due.labels(limit.named).set(due)
