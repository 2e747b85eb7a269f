"""Calls back when the first of some instants has come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import datetime

_LONGEST_WAIT_SECONDS = 60.0  # the clock may be set meanwhile
_SHORTEST_WAIT_SECONDS = 0.05


class Expiry:
    """One timer for things that end by themselves; `over` looks which of them do."""

    def __init__(self, over: Callable[[], None], *, now: Callable[[], datetime]) -> None:
        self._over = over
        self._now = now
        self._timer: asyncio.TimerHandle | None = None

    def arm(self, ends: Iterable[datetime | None]) -> None:
        """Call back at the first of these instants, in a minute at most; None never comes."""
        self.close()
        known = [end for end in ends if end is not None]
        if known:
            left = (min(known) - self._now()).total_seconds()
            wait = min(max(left, _SHORTEST_WAIT_SECONDS), _LONGEST_WAIT_SECONDS)
            self._timer = asyncio.get_running_loop().call_later(wait, self._over)

    def close(self) -> None:
        """Call back no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
