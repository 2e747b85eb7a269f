"""Alarms: what a gate has refused until an instant is asked again at that instant."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from .blocked import Key

MAX_SECONDS = 60.0
"""The clock may be set, or the machine asleep: a timer re-checks the clock this often."""


class Alarms:
    """At most one alarm for each queue and key; the earliest instant named counts."""

    def __init__(
        self, rung: Callable[[str, Key | None], None], now: Callable[[], datetime]
    ) -> None:
        self._rung = rung
        self._now = now
        self._timers: dict[tuple[str, Key | None], tuple[datetime, asyncio.TimerHandle]] = {}

    def set(self, flow: str, key: Key | None, at: datetime, now: datetime) -> None:
        """Call `rung` at an instant, for a key or, with None, for the whole queue."""
        waiting = (flow, key)
        known = self._timers.get(waiting)
        if known is not None:
            if known[0] <= at:
                return
            known[1].cancel()
        self._arm(waiting, at, now)

    def ring_early(self, flow: str, key: Key | None) -> None:
        """Ring one alarm now, if it is set."""
        if (flow, key) in self._timers:
            self._ring((flow, key))

    def next_at(self) -> datetime | None:
        """Return the earliest instant."""
        return min((at for at, _ in self._timers.values()), default=None)

    def ring(self) -> None:
        """Ring every alarm now."""
        for waiting in list(self._timers):
            self._ring(waiting)

    def close(self) -> None:
        """Forget every alarm."""
        for _, timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _arm(self, waiting: tuple[str, Key | None], at: datetime, now: datetime) -> None:
        seconds = min(max((at - now).total_seconds(), 0.0), MAX_SECONDS)
        timer = asyncio.get_running_loop().call_later(seconds, self._look, waiting)
        self._timers[waiting] = (at, timer)

    def _look(self, waiting: tuple[str, Key | None]) -> None:
        """Ring at the instant; before it nothing is asked."""
        at, now = self._timers[waiting][0], self._now()
        if at > now:
            self._arm(waiting, at, now)
        else:
            self._ring(waiting)

    def _ring(self, waiting: tuple[str, Key | None]) -> None:
        self._timers.pop(waiting)[1].cancel()
        self._rung(*waiting)
