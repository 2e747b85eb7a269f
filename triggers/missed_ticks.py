"""Missed ticks: which of the instants that came due become events. Pure decisions.

When a timer looks at the clock, it finds the instants that came due since the last tick. The latest
is on time if it is at most a minute late; all others are missed. After a start, a sleep of the
machine, a clock set forward or a full disk, `missed=` decides:

* `run_once` (default): one tick, for the latest. It stands for all of them.
* `skip`: only the latest, and only if it is on time.
* `run_all`: every missed tick, at most the last `missed_limit` of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from .calendar import Every, Schedule

Missed = Literal["run_once", "skip", "run_all"]

ON_TIME = timedelta(seconds=60)
"""How late a tick may be and still be on time."""

MAX_MISSED = 10_000
"""The largest `missed_limit`: that many ticks are one transaction."""

_YIELD_EVERY = 64  # instants counted before the event loop gets its turn


@dataclass(frozen=True, slots=True)
class Due:
    """The instants that came due since the last tick: their number, and the latest, in order."""

    count: int
    latest: Sequence[datetime]


@dataclass(frozen=True, slots=True)
class Ticks:
    """What to emit: (due, missed ticks it stands for); and how many missed ones have no tick."""

    emitted: Sequence[tuple[datetime, int]]
    dropped: int


def decide(due: Due, *, latest_on_time: bool, missed: Missed, limit: int) -> Ticks:
    """Return the ticks the policy asks for; see the module. `due.count` is at least 1."""
    last = due.latest[-1]
    overdue = due.count - latest_on_time
    if missed == "run_once":
        return Ticks([(last, overdue)], due.count - 1)
    punctual = [(last, 0)] if latest_on_time else []
    if missed == "skip":
        return Ticks(punctual, overdue)
    late = list(due.latest[: len(due.latest) - latest_on_time])[-limit:]
    return Ticks([*((instant, 1) for instant in late), *punctual], overdue - len(late))


async def came_due(
    schedule: Schedule,
    starts_at: Callable[[datetime], datetime],
    first: datetime,
    now: datetime,
    keep: int,
) -> Due:
    """Count the instants from `first` to `now`, giving way to other work; keep the last ones.

    `starts_at` says when the tick of an instant is emitted, jitter included.
    """
    if isinstance(schedule, Every):
        return _intervals_due(schedule.interval, starts_at, first, now, keep)
    latest, count = deque([first], keep), 1
    while (due := schedule.next_after(latest[-1])) is not None and starts_at(due) <= now:
        latest.append(due)
        count += 1
        if count % _YIELD_EVERY == 0:
            await asyncio.sleep(0)
    return Due(count, tuple(latest))


def _intervals_due(
    interval: timedelta,
    starts_at: Callable[[datetime], datetime],
    first: datetime,
    now: datetime,
    keep: int,
) -> Due:
    """Count intervals without a loop: after years there may be very many."""
    count = max((now - first) // interval + 1, 1)
    if count > 1 and starts_at(first + (count - 1) * interval) > now:
        count -= 1  # jitter is shorter than the interval: only the latest may wait
    latest = range(max(count - keep, 0), count)
    return Due(count, tuple(first + number * interval for number in latest))
