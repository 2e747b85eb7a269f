"""When a flow was paused: what began to wait in such a time waits for the end of the pause."""

from __future__ import annotations

from collections import deque
from datetime import datetime

MOST_TIMES = 100
"""How many pauses of a flow are remembered."""


class PauseTimes:
    """The latest times in which a flow was paused; the last one may not have ended."""

    __slots__ = ("_ended", "since")

    def __init__(self) -> None:
        self.since: datetime | None = None
        self._ended: deque[tuple[datetime, datetime]] = deque(maxlen=MOST_TIMES)

    def begin(self, at: datetime) -> None:
        """Begin a time, unless one has begun."""
        if self.since is None:
            self.since = at

    def end(self, at: datetime) -> None:
        """End the time that has begun, if one has."""
        if self.since is not None:
            self._ended.append((self.since, at))
            self.since = None

    def include(self, at: datetime) -> bool:
        """Whether an instant lies in one of the times."""
        if self.since is not None and at >= self.since:
            return True
        return any(since <= at <= until for since, until in self._ended)
