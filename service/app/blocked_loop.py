"""Notices code that blocks the event loop: a warning after a second, and the end of the process.

Each block of a second is logged, with flow, run and line. Past `blocked_loop` the process ends; the
supervisor (systemd, compose) restarts it, and crash isolation finds the run at fault.
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

WARN_SECONDS = 1.0

_SIGN_SECONDS = 0.25
"""How often the loop gives a sign of life; a silence is longer than its block by that at most."""

_TICK_SECONDS = 0.1
_LONGEST_TICK = 2
"""What a pause between two looks counts at most, in ticks."""

_SIGNS, _TICKS = 40, 10
"""How often at least, within `blocked_loop`, the loop gives a sign, and the thread looks."""

_PROCESSORS = 4
_LONGEST_TIMER = 10.0**8


async def watch_loop(settings: Settings, metrics: Metrics) -> None:
    """Warn when the loop was blocked for a second; end the process after `blocked_loop`.

    Each sign of life also tells how late the loop is.
    """
    watchdog = _Watchdog(settings.blocked_loop)
    watchdog.start()
    seconds = min(_SIGN_SECONDS, settings.blocked_loop.total_seconds() / _SIGNS)
    try:
        while True:
            watchdog.sign()
            due = time.monotonic() + seconds
            await asyncio.sleep(seconds)
            metrics.loop_delay_seconds.observe(max(time.monotonic() - due, 0.0))
    finally:
        watchdog.stop()


class _Watchdog:
    """A thread that measures how long the loop has not responded, and looks what it does then.

    In short ticks, because a stopped process (SIGSTOP, a frozen container, a machine asleep) does
    not have a blocked loop: the pause counts as two ticks at most. Code that holds the
    interpreter's lock blocks this thread too: it is told of afterwards, by the processor time of
    the loop's thread, and the kernel ends the process after up to four times as much of it.
    """

    def __init__(self, length: timedelta) -> None:
        self._seen = Event()
        self._tick_seconds = min(_TICK_SECONDS, length.total_seconds() / _TICKS)
        self._signed_at, self._worked = time.monotonic(), time.thread_time()
        self._silent_seconds = self._busy_seconds = 0.0
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

    def sign(self) -> None:
        """Say that the loop works; only the loop calls it."""
        now, worked = time.monotonic(), time.thread_time()
        if now - self._signed_at > self._silent_seconds:
            self._silent_seconds = now - self._signed_at
            self._busy_seconds = worked - self._worked
        self._signed_at, self._worked = now, worked
        self._seen.set()

    def _watch(self) -> None:
        seconds = self._length.total_seconds()
        # Times processors: other threads may use them without the interpreter's lock.
        processor_seconds = min(seconds * min(os.cpu_count() or 1, _PROCESSORS), _LONGEST_TIMER)
        blocked, told = 0.0, False
        code: RunningCode | None = None
        while not self._stopped.is_set():
            signal.setitimer(signal.ITIMER_VIRTUAL, processor_seconds)
            began = time.monotonic()
            self._stopped.wait(self._tick_seconds)
            if self._seen.is_set():
                self._seen.clear()
                if not told:
                    self._warn_of_what_is_over(code)
                blocked, told, code, self._silent_seconds = 0.0, False, None, 0.0
                continue
            passed = time.monotonic() - began
            blocked += min(passed, _LONGEST_TICK * self._tick_seconds)
            # Early, since what blocks for a second may be over before this thread looks again.
            if blocked >= WARN_SECONDS / 2 and (code is None or code.location is None):
                code = self._code()
            if blocked >= WARN_SECONDS and not told:
                _warn(code)
                told = True
            if blocked >= seconds:
                self._end()

    def _warn_of_what_is_over(self, code: RunningCode | None) -> None:
        """Say what has blocked the loop for a second, if it has and the process did not stand."""
        if self._silent_seconds < WARN_SECONDS:
            return
        if code is not None or self._busy_seconds >= WARN_SECONDS / 2:
            _warn(code)

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


def _warn(code: RunningCode | None) -> None:
    """Say what blocks the loop; None is what the thread could not see."""
    hint = "nothing else runs meanwhile: call it in a `def` task"
    if code is None:
        code = RunningCode(None, None, None, "")
        hint = "one call held the interpreter's lock: give it a task with pool='process'"
    log.warning(
        "loop.blocked",
        flow=code.flow,
        run=code.run,
        location=code.location,
        code=code.text,
        hint=hint,
    )
