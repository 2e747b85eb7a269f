"""What a scrape of the metrics shows that nobody counts as it happens.

`measure` asks the journal and the disk, off the loop; `counts` only reads memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime

from turnout.service.dispatch.dispatcher import Dispatcher
from turnout.service.domain.breaker import BreakerState
from turnout.service.domain.errors import JournalError
from turnout.service.intake.status import Status
from turnout.service.journal.contract import Journal
from turnout.service.journal.records import BackupStatus
from turnout.service.pools import Pools
from turnout.service.project import Project
from turnout.service.telemetry.metrics import Backup, Counts, Metrics

from .due_metrics import DueMetrics
from .wanted import Wanted

_BREAKER_STATES = (BreakerState.CLOSED, BreakerState.PROBING, BreakerState.OPEN)


class Scrape:
    """Reads what the metrics show of a process."""

    def __init__(
        self,
        journal: Journal,
        dispatcher: Dispatcher,
        pools: Pools,
        metrics: Metrics,
        *,
        project: Callable[[], Project],
        wanted: Wanted,
        statuses: Callable[[], Iterable[Status]],
        now: Callable[[], datetime],
    ) -> None:
        self._journal = journal
        self._dispatcher = dispatcher
        self._pools = pools
        self._metrics = metrics
        self._statuses = statuses
        self._due = DueMetrics(
            journal, dispatcher, metrics, project=project, wanted=wanted, now=now
        )
        self._now = now
        self._backup: BackupStatus | None = None
        self._last_before: Mapping[str, datetime] | None = None
        metrics.observe_counts(self.counts)
        metrics.observe_own()

    async def measure(self) -> None:
        """Measure before the metrics are shown; what a failing disk does not answer stays."""
        if not await self._due.refresh():
            return
        with suppress(JournalError):
            if self._last_before is None:  # events of this process are known without the journal
                self._last_before = await self._journal.last_accepted()
        with suppress(OSError):
            free = await asyncio.to_thread(self._journal.free_bytes)
            self._metrics.disk_free_bytes.set(free)
        self._backup = await asyncio.to_thread(self._journal.backup_status)

    def counts(self) -> Counts:
        """Return what others keep, from memory."""
        runs_by_state, dead_letters_by_flow = self._journal.counts()
        return Counts(
            runs_by_state=runs_by_state,
            dead_letters_by_flow=dead_letters_by_flow,
            not_undone_by_flow=self._journal.not_undone(),
            slots_by_flow=self._dispatcher.held_slots(),
            waiting_by_pool=self._pools.waiting,
            used_by_pool=self._pools.working,
            size_by_pool=self._pools.sizes,
            breakers_by_dependency={
                each.stored.name: _BREAKER_STATES.index(each.stored.state)
                for each in self._dispatcher.breakers.statuses()
            },
            last_event_by_trigger=self._last_events(),
            queue_memory_bytes=self._dispatcher.queue_memory_bytes,
            queued_writes=self._journal.queued_writes,
            backup=self._backup_age(),
        )

    def _backup_age(self) -> Backup | None:
        """Return how old the last whole backup is, and whether a later one has failed."""
        if self._backup is None:
            return None
        taken_at = self._backup.taken_at
        age = None if taken_at is None else (self._now() - taken_at).total_seconds()
        return Backup(age, verified=self._backup.failure is None)

    def _last_events(self) -> dict[str, float]:
        """Return when each trigger's last event was accepted, also by an earlier process."""
        before = self._last_before or {}
        found = {
            status.trigger: status.last_event_at or before.get(status.trigger)
            for status in self._statuses()
        }
        return {trigger: at.timestamp() for trigger, at in found.items() if at is not None}
