"""What a running service looks at once a second: loop, the journal's files, the disk, the clock.

Each is a loop of its own and costs the work nothing. A journal that is not what was written, and a
loop that is blocked, end the process: a supervisor starts it again, and the journal says what to
go on with.
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

from turnout.service.domain.clock import WallClock
from turnout.service.domain.errors import JournalFull
from turnout.service.domain.units import format_duration
from turnout.service.journal.open import OpenJournal
from turnout.service.settings import Settings
from turnout.service.telemetry.logs import get_logger
from turnout.service.telemetry.streams import real_stderr

log = get_logger("turnout")

LOOK_SECONDS = 1.0
SET_BY = timedelta(seconds=0.5)
"""How much a clock jumps when it is set, rather than led."""

_SLICES = 10
_PROCESSORS = 4
_LONGEST_TIMER = 10.0**8


async def watch_files(journal: OpenJournal) -> None:
    """Give the journal up when its files are removed, replaced or cut off while it is open.

    What is written from then on would be gone after the next start.
    """
    with suppress(JournalFull):
        await journal.probe()  # so that there is a log that can be missed
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(journal.check())
        while await journal.look_at_files() is None:  # noqa: ASYNC110  files tell nobody
            await asyncio.sleep(LOOK_SECONDS)


async def watch_disk(journal: OpenJournal) -> None:
    """Say when the disk is full, and notice within a second or two that it has room again.

    Also when nobody writes: a service taken out of rotation for `/readyz` 503 would never be asked
    again.
    """
    said: str | None = None
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if journal.writable is not None:
            with suppress(JournalFull):
                await journal.probe()
        why = journal.writable or journal.short_of_space
        if why is not None and said is None:
            log.error("journal.full", error=why)
        elif why is None and said is not None:
            log.info("journal.writable")
        said = why


async def watch_clock(clock: WallClock, look: Callable[[], object]) -> None:
    """Call `look` when the wall clock was set: what is due, and when, is to be asked anew."""
    before = clock.ahead
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        now = clock.ahead
        if abs(now - before) > SET_BY:
            look()
        before = now


async def watch_loop(settings: Settings) -> None:
    """End the process, stacks printed, when the loop has been blocked for `blocked_loop`.

    The supervisor (systemd, compose) starts it again, and the run to blame is found by its deaths.
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
    """A thread that counts for how many slices of time the loop has not shown itself.

    Slices, because time in which the whole process stood still (SIGSTOP, a frozen container, a
    machine asleep) is none in which the loop was blocked: it is one slice at most. Code that keeps
    the interpreter's lock would block this thread too; the kernel ends the process then, once it
    has taken up to four times as much processor time.
    """

    def __init__(self, length: timedelta) -> None:
        self.seen = Event()
        self.slice_seconds = min(1.0, length.total_seconds() / _SLICES)
        self._length = length
        self._stopped = Event()
        self._thread = Thread(target=self._watch, name="turnout-watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        faulthandler.register(signal.SIGVTALRM, file=real_stderr(), all_threads=True, chain=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch."""
        self._stopped.set()
        self._thread.join()
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        faulthandler.unregister(signal.SIGVTALRM)

    def _watch(self) -> None:
        seconds = self._length.total_seconds()
        # Of several processors: other threads may work without the interpreter's lock meanwhile.
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
        said = f"the event loop was blocked for {format_duration(self._length)}\n"
        os.write(real_stderr().fileno(), said.encode())
        faulthandler.dump_traceback(file=real_stderr(), all_threads=True)
        os._exit(1)
