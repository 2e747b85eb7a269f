"""Maintenance of the journal: `run_once`, and a loop around it.

Prunes, in small batches, what is past its retention or above the size bound, with its blobs;
carries out after-run actions that a crash or an error left over; keeps the size metric. A clock
that has just jumped prunes nothing (`clock`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

from turnout.service.domain.clock import PATIENCE, WallClock
from turnout.service.domain.errors import JournalFull, Overloaded
from turnout.service.domain.units import LONGEST, format_duration
from turnout.service.intake.after_run_actions import AfterRunActions
from turnout.service.journal.contract import Retention
from turnout.service.settings import Settings
from turnout.service.telemetry.logs import get_logger
from turnout.service.telemetry.metrics import Metrics

log = get_logger("turnout.maintenance")

INTERVAL_SECONDS = 30.0
BATCH_ROWS = 500
BATCHES_A_ROUND = 200

_KEEP_ALERTS = timedelta(days=1)
"""How long ended alerts are kept at least: messages of the last hour count to what may be sent."""


class Maintenance:
    """Keeps the journal within its bounds."""

    def __init__(
        self,
        journal: Retention,
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
        """Maintain the journal until cancelled."""
        while True:
            try:
                await self.run_once()
            except (JournalFull, Overloaded) as error:
                log.warning("maintenance.put_off", error=str(error))
            await asyncio.sleep(INTERVAL_SECONDS)

    async def run_once(self) -> int:
        """Do one round of maintenance; returns the rows pruned."""
        await self._after_run_actions.sweep()
        pruned = await self._prune_by_age()
        await self._journal.prune_blobs()
        pruned += await self._prune_by_size()
        self._metrics.journal_size_bytes.set(await self._size())
        if pruned:
            log.debug("journal.pruned", rows=pruned)
        return pruned

    async def _prune_by_age(self) -> int:
        if not self._is_clock_trusted():
            return 0
        now, settings = self._now(), self._settings
        kept = max(settings.keep_finished, settings.keep_failed)
        if kept < LONGEST:
            await self._after_run_actions.drop_old(now - kept)
        pruned = 0
        for _ in range(BATCHES_A_ROUND):
            pruned += await self._journal.clear_cache(over_by=now, limit=BATCH_ROWS)
            rows = await self._journal.prune(
                finished_before=now - settings.keep_finished,
                failed_before=now - settings.keep_failed,
                unmatched_before=now - settings.keep_unmatched,
                dedupe_before=now - settings.dedupe,
                now=now,
                limit=BATCH_ROWS,
            )
            rows += await self._prune_states(now)
            rows += await self._prune_alerts(now)
            pruned += rows
            if not rows:
                break
        return pruned

    async def _prune_states(self, now: datetime) -> int:
        """Delete the states of ordering keys that are no longer used.

        The use by a run counts from when the run is deleted, so that comes on top.
        """
        settings = self._settings
        undeleted = max(settings.keep_finished, settings.keep_failed)
        if settings.keep_state + undeleted >= LONGEST:
            return 0
        return await self._journal.prune_states(
            unused_since=now - settings.keep_state - undeleted, now=now, limit=BATCH_ROWS
        )

    async def _prune_alerts(self, now: datetime) -> int:
        """Delete what has ended of alerts, as old as the failed runs that are deleted."""
        kept = self._settings.keep_failed
        if kept >= LONGEST:
            return 0
        ended_before = now - max(kept, _KEEP_ALERTS)
        return await self._journal.prune_alerts(ended_before=ended_before, limit=BATCH_ROWS)

    def _is_clock_trusted(self) -> bool:
        ahead = self._clock.ahead
        trusted = self._clock.is_trusted()
        if not trusted and not self._deferred:
            log.error(
                "pruning.deferred",
                ahead=format_duration(ahead),
                wait=format_duration(PATIENCE),
                error="the clock jumped far ahead; correct it, or what is then past its "
                "retention is deleted after the wait",
            )
        self._deferred = not trusted
        return trusted

    async def _prune_by_size(self) -> int:
        pruned = 0
        for _ in range(BATCHES_A_ROUND):
            if await self._size() <= self._settings.max_journal_bytes:
                break
            rows = await self._journal.prune_oldest(BATCH_ROWS)
            freed = await self._journal.prune_blobs()
            pruned += rows
            if not rows or freed is None:  # what a backup needs is deleted after it
                break
        return pruned

    async def _size(self) -> int:
        return await asyncio.to_thread(self._journal.size_bytes)
