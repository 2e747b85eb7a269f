"""Notices code that blocks the event loop: a warning after a second, and the end of the process.

The warning names flow, run and line. Past `blocked_loop` the process ends; the supervisor (systemd,
compose) restarts it, and crash isolation finds the run at fault.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from threading import Event, Thread
from typing import NoReturn

from turnout.service.domain.units import format_duration
from turnout.service.settings import Settings
from turnout.service.steps.running_code import RunningCode, running_code
from turnout.service.telemetry.logs import get_logger
from turnout.service.telemetry.metrics import Metrics
from turnout.service.telemetry.streams import real_stderr

log = get_logger("turnout")

_SLICES = 10
_SIGNS = 4
"""How often in a slice the loop gives a sign of life."""

_GRACE_SECONDS = 0.25
"""How long a loop may still take that has given none, as after a stop of the whole process."""

_PROCESSORS = 4
_LONGEST_TIMER = 10.0**8


async def watch_loop(settings: Settings, metrics: Metrics) -> None:
    """Warn when the loop was blocked for a second; end the process after `blocked_loop`.

    Each sign of life also tells how late the loop is.
    """
    watchdog = _Watchdog(settings.blocked_loop)
    watchdog.start()
    seconds = watchdog.slice_seconds / _SIGNS
    try:
        while True:
            watchdog.seen.set()
            due = time.monotonic() + seconds
            await asyncio.sleep(seconds)
            metrics.loop_delay_seconds.observe(max(time.monotonic() - due, 0.0))
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
        self._loop_thread = threading.get_ident()
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
        blocked, told = 0.0, False
        while not self._stopped.is_set():
            signal.setitimer(signal.ITIMER_VIRTUAL, processor_seconds)
            self._stopped.wait(self.slice_seconds)
            if self.seen.is_set():
                blocked, told = 0.0, False
            else:
                blocked += self.slice_seconds
            self.seen.clear()
            if blocked >= 1.0 and not told:
                told = self._warn()
            if blocked >= seconds:
                self._end()

    def _warn(self) -> bool:
        """Say what blocks the loop, unless it works again; returns whether it was said."""
        if self.seen.wait(_GRACE_SECONDS) or self._stopped.is_set():
            return False
        code = self._code()
        if code is not None:
            log.warning(
                "loop.blocked",
                flow=code.flow,
                run=code.run,
                location=code.location,
                code=code.text,
                hint="nothing else runs meanwhile: call it in a `def` task",
            )
        return code is not None

    def _code(self) -> RunningCode | None:
        frame = sys._current_frames().get(self._loop_thread)
        return None if frame is None else running_code(frame)

    def _end(self) -> NoReturn:
        faulthandler.dump_traceback(file=real_stderr(), all_threads=True)
        code, length = self._code(), format_duration(self._length)
        who = "code of an unknown thread" if code is None else code.words
        message = (
            f"turnout ends: {who} blocked the event loop for {length} (setting blocked_loop, "
            "TURNOUT_BLOCKED_LOOP), so that nothing else could run; call what blocks in a `def` "
            "task, or raise the setting\n"
        )
        os.write(real_stderr().fileno(), message.encode())
        os._exit(1)
