"""Checks of a running service, once a second: event loop, journal files, disk, clock and pools.

Each is its own loop, off the path of events and runs. A corrupt journal or a blocked event loop
ends the process; a supervisor restarts it, and runs resume from the journal.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from threading import Event, Thread
from typing import NoReturn

from turnout.service.domain.clock import STEP, EngineClock
from turnout.service.domain.errors import JournalFull
from turnout.service.domain.units import format_duration
from turnout.service.journal.contract import Lifecycle, Upkeep
from turnout.service.pools import Pools
from turnout.service.settings import Settings
from turnout.service.telemetry.logs import get_logger
from turnout.service.telemetry.metrics import Metrics
from turnout.service.telemetry.streams import real_stderr

log = get_logger("turnout")

CHECK_SECONDS = 1.0

_SLICES = 10
_PROCESSORS = 4
_LONGEST_TIMER = 10.0**8


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


async def watch_disk(journal: Upkeep) -> None:
    """Log when the disk is full, and detect within two seconds that it has space again.

    Also while nothing is written: a service removed from rotation by `/readyz` 503 gets no
    requests that would test the disk.
    """
    reported: str | None = None
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        if journal.writable is not None:
            with suppress(JournalFull):
                await journal.probe()
        why = journal.writable or journal.short_of_space
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


async def watch_loop(settings: Settings) -> None:
    """Print stacks and end the process when the loop was blocked for `blocked_loop`.

    The supervisor (systemd, compose) restarts it; crash isolation finds the run at fault.
    """
    watchdog = _Watchdog(settings.blocked_loop)
    watchdog.start()
    try:
        while True:
            watchdog.seen.set()
            await asyncio.sleep(watchdog.slice_seconds)
    finally:
        watchdog.stop()


class _Watchdog:
    """A thread that counts the time slices in which the loop did not respond.

    Slices, because a stopped process (SIGSTOP, a frozen container, a machine asleep) does not have
    a blocked loop: the pause counts as one slice at most. Code that holds the interpreter's lock
    blocks this thread too; then the kernel ends the process after up to four times as much
    processor time.
    """

    def __init__(self, length: timedelta) -> None:
        self.seen = Event()
        self.slice_seconds = min(1.0, length.total_seconds() / _SLICES)
        self._length = length
        self._stopped = Event()
        self._thread = Thread(target=self._watch, name="turnout-watchdog", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        faulthandler.register(signal.SIGVTALRM, file=real_stderr(), all_threads=True, chain=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._stopped.set()
        self._thread.join()
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        faulthandler.unregister(signal.SIGVTALRM)

    def _watch(self) -> None:
        seconds = self._length.total_seconds()
        # Times processors: other threads may use them without the interpreter's lock.
        processor_seconds = min(seconds * min(os.cpu_count() or 1, _PROCESSORS), _LONGEST_TIMER)
        blocked = 0.0
        while not self._stopped.is_set():
            signal.setitimer(signal.ITIMER_VIRTUAL, processor_seconds)
            self._stopped.wait(self.slice_seconds)
            blocked = 0.0 if self.seen.is_set() else blocked + self.slice_seconds
            self.seen.clear()
            if blocked >= seconds:
                self._end()

    def _end(self) -> NoReturn:
        message = f"the event loop was blocked for {format_duration(self._length)}\n"
        os.write(real_stderr().fileno(), message.encode())
        faulthandler.dump_traceback(file=real_stderr(), all_threads=True)
        os._exit(1)
