"""Checks of a running service, once a second: journal files, disk, clock and pools.

Each is its own loop, off the path of events and runs. A corrupt journal ends the process; a
supervisor restarts it, and runs resume from the journal. Not here: the event loop (`blocked_loop`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from turnout.service.domain.clock import STEP, EngineClock
from turnout.service.domain.errors import JournalFull
from turnout.service.domain.units import format_duration
from turnout.service.journal.contract import Lifecycle, Retention
from turnout.service.pools import Pools
from turnout.service.telemetry.logs import get_logger
from turnout.service.telemetry.metrics import Metrics

log = get_logger("turnout")

CHECK_SECONDS = 1.0


async def watch_files(journal: Lifecycle) -> None:
    """Declare the journal broken when its files are removed, replaced or truncated.

    Anything written after that would be lost at the next start.
    """
    with suppress(JournalFull):
        await journal.probe()  # so that the write-ahead log exists and can be checked
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(journal.check())
        while await journal.look_at_files() is None:  # noqa: ASYNC110  no notification exists
            await asyncio.sleep(CHECK_SECONDS)


async def watch_disk(journal: Retention) -> None:
    """Log when the disk is full, and detect within two seconds that it has space again.

    Also while nothing is written: a service removed from rotation by `/readyz` 503 gets no
    requests that would test the disk.
    """
    reported: str | None = None
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        refused = journal.writable
        if refused is not None:
            with suppress(JournalFull):
                await journal.probe()
        # Also where the probe, a small write, succeeds: what was refused may have been larger.
        why = refused or journal.writable or journal.short_of_space
        if why is not None and reported is None:
            log.error("journal.full", error=why)
        elif why is None and reported is not None:
            log.info("journal.writable")
        reported = why


async def watch_clock(clock: EngineClock, metrics: Metrics, recheck: Callable[[], object]) -> None:
    """Report when the wall clock was set, and call `recheck`: more may be due now."""
    metrics.clock_behind_seconds.set_function(lambda: clock.behind().total_seconds())
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        step = clock.step()
        if abs(step) > STEP:
            direction = "ahead" if step > STEP else "back"
            log.warning("clock.stepped", direction=direction, by=format_duration(abs(step)))
            metrics.clock_steps.labels(direction).inc()
            recheck()


async def watch_pools(pools: Pools) -> None:
    """Log when runs start to wait for a pool, and when none waits any more."""
    reported: dict[str, str] = {}
    while True:
        now = pools.warnings()
        for what in now.keys() - reported.keys() - {"timeouts"}:  # logged when they happen
            log.warning("pool.exhausted", pool=what, why=now[what])
        for what in reported.keys() - now.keys() - {"timeouts"}:
            log.info("pool.recovered", pool=what)
        reported = now
        await asyncio.sleep(CHECK_SECONDS)
