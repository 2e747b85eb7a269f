"""Clock jumps: the wall clock is compared with the time that has really passed.

A clock that is wrong for a moment must not make everything look old. Retention asks here before it
deletes; everything else uses the clock as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta

JUMP = timedelta(days=1)
"""How far ahead of the elapsed time a clock is doubted."""

PATIENCE = timedelta(hours=1)
"""How long a clock must stay ahead to be trusted again."""


def elapsed() -> float:
    """Return seconds that no setting of the clock changes; on Linux a machine asleep counts."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class WallClock:
    """Compares a wall clock with the time that has passed since it was last trusted."""

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
