"""Rates as people write them, `"100/m"`, and the sliding log that keeps one.

A log holds the instants of the latest starts, for each key. It has no buckets and lets no burst on
top: in any stretch of time as long as the period there are at most `count` of them.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from turnout.service.domain.errors import SetupError
from turnout.service.domain.units import format_duration, is_duration, parse_duration

LONGEST = timedelta(days=1)
"""The longest period of a rate: what has started within it is kept in memory and in the journal."""

MOST = 1_000_000
"""The highest count of a rate: each start within the period takes about 60 bytes of memory."""

_FORMS = 'write it like "10/s", "100/m", "20/2s", "1000/h" or "5000/d"'
_RATE = re.compile(r"\s*(\d+)\s*/\s*(\S+)\s*", re.ASCII)
_UNITS = ("1s", "1m", "1h", "1d")
_LOOKS = 2  # keys looked at for each start: idle ones are forgotten faster than new ones come


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` in any stretch of time as long as `period`."""

    count: int
    period: timedelta

    def __str__(self) -> str:
        """Return the rate as it is written: `100/m`."""
        period = format_duration(self.period)
        return f"{self.count}/{period[1:] if period in _UNITS else period}"


def parse_rate(text: object) -> Rate:
    """Read a rate such as `"100/m"` or `"20/2s"`, over a day at most.

    Raises `SetupError` for what cannot be meant.
    """
    match = _RATE.fullmatch(text) if isinstance(text, str) else None
    period = "" if match is None else match[2] if match[2][0].isdigit() else f"1{match[2]}"
    if match is None or not is_duration(period):
        raise SetupError(f"cannot read the rate {text!r}; {_FORMS}")
    rate = Rate(int(match[1]), parse_duration(period))
    if rate.count > MOST:
        raise SetupError(
            f"the rate {text!r} counts {rate.count}; {MOST:,} are the most: write a shorter period"
        )
    if rate.count < 1:
        raise SetupError(f"the rate {text!r} lets nothing start; that is `turnout pause`, not 0")
    if not rate.period:
        raise SetupError(f"the rate {text!r} has no period; {_FORMS}")
    if rate.period > LONGEST:
        raise SetupError(f"the rate {text!r} counts over more than a day, the longest there is")
    return rate


class SlidingLog:
    """The instants of the latest starts, by key; those of the last `period` at least are kept.

    Each takes about 60 bytes. A key without a start within the period is forgotten.
    """

    def __init__(self, period: timedelta) -> None:
        self.period = period
        self._starts: dict[str, deque[datetime]] = {}  # the key that started last is the last

    def next_free(self, key: str, rate: Rate, now: datetime) -> datetime | None:
        """Return when to ask again for a start under a rate; None: now."""
        starts = self._starts.get(key)
        if starts is None or len(starts) < rate.count:
            return None
        if starts[-1] > now:  # the clock was ahead when they were recorded
            starts = deque(at for at in starts if now - rate.period < at < now + rate.period)
            if len(starts) < rate.count:
                return None
        free_at = starts[-rate.count] + rate.period
        return None if free_at <= now else free_at

    def add(self, key: str, at: datetime) -> None:
        """Record a start."""
        starts = self._starts.pop(key, None)
        if starts is None:
            starts = deque()
        self._starts[key] = starts
        _insert(starts, at)
        while starts[0] <= at - self.period:
            starts.popleft()
        self._forget_idle_keys(at)

    def remove(self, key: str, at: datetime) -> None:
        """Take back a start that did not happen."""
        starts = self._starts.get(key)
        if starts is not None and at in starts:
            starts.remove(at)
            if not starts:
                del self._starts[key]

    def take_over(self, other: SlidingLog) -> None:
        """Count what is in another log too, and empty that one."""
        for key, starts in other._starts.items():
            own = self._starts.setdefault(key, deque())
            for (
                at
            ) in starts:  # not by `add`: a later instant, of a clock that was ahead, drops none
                _insert(own, at)
        other._starts = {}

    def keys(self) -> Iterator[str]:
        """Yield every key that is known, the one that started last at the end."""
        return iter(self._starts)

    def count(self, key: str, rate: Rate, now: datetime) -> int:
        """Return how many starts of a key a rate counts now."""
        return sum(now - rate.period < at < now + rate.period for at in self._starts.get(key, ()))

    def _forget_idle_keys(self, now: datetime) -> None:
        for _ in range(_LOOKS):
            key = next(iter(self._starts))
            latest = self._starts[key][-1]
            if latest > now - self.period and latest <= now:
                return
            starts = self._starts.pop(key)
            if latest > now:  # the clock was ahead: look at it again later
                self._starts[key] = starts


def _insert(starts: deque[datetime], at: datetime) -> None:
    """Insert an instant in order; unless the clock was set back, it is the latest."""
    later: list[datetime] = []
    while starts and starts[-1] > at:
        later.append(starts.pop())
    starts.append(at)
    starts.extend(reversed(later))
