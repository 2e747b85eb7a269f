"""Upkeep: what a service does for itself, as `run_once` and a loop around it.

Prunes what is past its time or above the size bound, in small batches, with its large results;
carries out after-run actions that a crash or an error left over; keeps the size metric. A clock
that has just jumped prunes nothing (`clock`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from turnout.service.domain.clock import PATIENCE, WallClock
from turnout.service.domain.errors import JournalFull, Overloaded
from turnout.service.domain.units import format_duration
from turnout.service.intake.after_run_actions import AfterRunActions
from turnout.service.journal.contract import Journal
from turnout.service.settings import Settings
from turnout.service.telemetry.logs import get_logger
from turnout.service.telemetry.metrics import Metrics

log = get_logger("turnout.maintenance")

INTERVAL_SECONDS = 30.0
BATCH_ROWS = 500
BATCHES_A_ROUND = 200


class Maintenance:
    """Keeps the journal within its bounds."""

    def __init__(
        self,
        journal: Journal,
        after_run_actions: AfterRunActions,
        settings: Settings,
        metrics: Metrics,
        *,
        now: Callable[[], datetime],
        clock: WallClock,
    ) -> None:
        self._journal = journal
        self._after_run_actions = after_run_actions
        self._settings = settings
        self._metrics = metrics
        self._now = now
        self._clock = clock
        self._deferred = False

    async def run(self) -> None:
        """Do the upkeep until cancelled."""
        while True:
            try:
                await self.run_once()
            except (JournalFull, Overloaded) as error:
                log.warning("maintenance.put_off", error=str(error))
            await asyncio.sleep(INTERVAL_SECONDS)

    async def run_once(self) -> int:
        """Do one round of upkeep; returns the rows pruned."""
        await self._after_run_actions.sweep()
        pruned = await self._prune_by_age()
        await self._journal.prune_blobs()
        pruned += await self._prune_by_size()
        self._metrics.journal_size_bytes.set(await self._size())
        if pruned:
            log.debug("journal.pruned", rows=pruned)
        return pruned

    async def _prune_by_age(self) -> int:
        if not self._is_time_believed():
            return 0
        now, settings = self._now(), self._settings
        pruned = 0
        for _ in range(BATCHES_A_ROUND):
            pruned += await self._journal.clear_cache(over_by=now, limit=BATCH_ROWS)
            rows = await self._journal.prune(
                finished_before=now - settings.keep_finished,
                failed_before=now - settings.keep_failed,
                unmatched_before=now - settings.keep_unmatched,
                dedupe_before=now - settings.dedupe,
                limit=BATCH_ROWS,
            )
            pruned += rows
            if not rows:
                break
        return pruned

    def _is_time_believed(self) -> bool:
        ahead = self._clock.ahead
        believed = self._clock.is_believed()
        if not believed and not self._deferred:
            log.error(
                "pruning.deferred",
                ahead=format_duration(ahead),
                wait=format_duration(PATIENCE),
                error="the clock is far ahead of when this service last knew the time; "
                "set it right, or what is old by it is deleted then",
            )
        self._deferred = not believed
        return believed

    async def _prune_by_size(self) -> int:
        pruned = 0
        for _ in range(BATCHES_A_ROUND):
            if await self._size() <= self._settings.max_journal_bytes:
                break
            rows = await self._journal.prune_oldest(BATCH_ROWS)
            await self._journal.prune_blobs()
            pruned += rows
            if not rows:
                break
        return pruned

    async def _size(self) -> int:
        return await asyncio.to_thread(self._journal.size_bytes)
