"""The clocks of a process: the wall clock, the engine's time, and jumps of the wall clock.

Engine time stamps and schedules everything the service keeps: what is accepted, due, started and
ended. The wall clock stays the measure of what comes from outside: ticks of timers, timestamps of
senders and of files, HTTP dates, and how old something may get before retention deletes it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Lock

from .errors import SetupError
from .units import parse_duration, utc_now

TEST_CLOCK = "TURNOUT_TEST_CLOCK"
"""For tests only: a file with how far this process's wall clock is off, such as `+1d` or `-1h`."""

STEP = timedelta(seconds=1)
"""A wall clock that differs by more was set, and did not drift."""

JUMP = timedelta(days=1)
"""How far ahead of the elapsed time a clock is doubted."""

PATIENCE = timedelta(hours=1)
"""How long a clock must stay ahead to be trusted again."""

_LONGEST_READING_SECONDS = 0.1


elapsed: Callable[[], float] = partial(
    time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
)
"""Returns seconds that no setting of the clock changes; on Linux a machine asleep counts."""


def wall_clock() -> Callable[[], datetime]:
    """Return what reads the wall clock of this process, in UTC: the true one, but in tests."""
    file = os.environ.get(TEST_CLOCK)
    return utc_now if not file else _ClockOfTests(Path(file))


class _ClockOfTests:
    """A wall clock that is off by what a file says each time it is read."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __call__(self) -> datetime:
        text = self._file.read_text("utf-8").strip()
        if text[:1] not in ("+", "-"):
            raise SetupError(f"{TEST_CLOCK}: {self._file} holds {text!r}; write it like +1d or -1h")
        by = parse_duration(text[1:])
        return utc_now() + (by if text[0] == "+" else -by)


class EngineClock:
    """The time inside a process: it never goes back, and never stands still.

    It is the wall clock, or where that was set back, the last engine time and what has passed
    since. A new process begins with the wall clock, whatever was recorded before: a clock that was
    once ahead must not stop the service until that date.
    """

    __slots__ = ("_elapsed", "_lock", "_offset", "_recorded", "_seen", "_wall_seconds", "wall")

    def __init__(
        self,
        wall: Callable[[], datetime] = utc_now,
        *,
        recorded: datetime | None = None,
        elapsed: Callable[[], float] = elapsed,
    ) -> None:
        """Begin with the wall clock; `recorded` is the latest instant that the journal knows."""
        self.wall = wall
        # Asked several times for each event: a number is quicker to get and to compare.
        self._wall_seconds = time.time if wall is utc_now else lambda: wall().timestamp()  # noqa: TID251
        self._elapsed = elapsed
        self._recorded = recorded
        self._lock = Lock()
        self._offset = self._seen = self._read_offset()

    def now(self) -> datetime:
        """Return the engine's time, in UTC. Any thread may ask."""
        wall = self._wall_seconds()  # first: a pause in between must not put the time ahead
        engine = self._elapsed() + self._offset
        return datetime.fromtimestamp(engine, UTC) if engine >= wall else self._set_ahead()

    def _set_ahead(self) -> datetime:
        """Follow a wall clock that is ahead of the engine's time."""
        with self._lock:
            wall = self._wall_seconds()
            passed = self._elapsed()
            self._offset = max(self._offset, wall - passed)
            return datetime.fromtimestamp(passed + self._offset, UTC)

    def behind(self) -> timedelta:
        """Return how far the wall clock is behind the engine's time, or behind what was recorded.

        Zero for a clock that was not set back, or by a second at most.
        """
        wall = self.wall()
        latest = self.now() if self._recorded is None else max(self.now(), self._recorded)
        return latest - wall if latest - wall > STEP else timedelta(0)

    def step(self) -> timedelta:
        """Return how far the wall clock was set, ahead or back, since this was last asked."""
        before, self._seen = self._seen, self._read_offset()
        return timedelta(seconds=self._seen - before)

    def _read_offset(self) -> float:
        """Return what the wall clock shows beyond the elapsed time."""
        while True:
            before = self._elapsed()
            wall = self._wall_seconds()
            passed = self._elapsed()
            if passed - before < _LONGEST_READING_SECONDS:  # else it was interrupted
                return wall - passed


class WallClock:
    """Compares a wall clock with the time that has passed since it was last trusted.

    A clock that is wrong for a moment must not make everything look old: retention asks here before
    it deletes.
    """

    def __init__(
        self,
        now: Callable[[], datetime],
        *,
        known: datetime | None = None,
        elapsed: Callable[[], float] = elapsed,
    ) -> None:
        """Begin at what the clock says, or at `known`: an instant that was once passed for sure."""
        self._now = now
        self._elapsed = elapsed
        self._trusted = self._offset() if known is None else known.timestamp() - elapsed()
        self._doubted_at: float | None = None

    def _offset(self) -> float:
        return self._now().timestamp() - self._elapsed()

    @property
    def ahead(self) -> timedelta:
        """How far the clock is ahead of its last trusted reading and the time since."""
        return timedelta(seconds=self._offset() - self._trusted)

    def is_trusted(self) -> bool:
        """Whether what is old by the clock may be deleted.

        Not within an hour of a jump ahead by more than a day. Set back, it is trusted at once:
        less is old then.
        """
        if self.ahead > JUMP:
            if self._doubted_at is None:
                self._doubted_at = self._elapsed()
            if self._elapsed() - self._doubted_at < PATIENCE.total_seconds():
                return False
        self._trusted = self._offset()
        self._doubted_at = None
        return True
