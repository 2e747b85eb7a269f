"""When to try again: one pure function from (policy, retry number, error) to a delay.

A retry of a flow is a fact in the journal, so nothing here sleeps.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta

from .errors import SetupError
from .units import parse_duration


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often and how far apart to retry: `count` retries after the first try.

    The delay before retry n is `delay * factor**(n-1)`, at most `max`, then drawn evenly from
    [0, that] when `jitter` is true ("full jitter", which spreads a crowd best).
    """

    count: int = 0
    delay: timedelta = timedelta(seconds=1)
    factor: float = 2.0
    max: timedelta = timedelta(minutes=15)
    jitter: bool = True


def retry(
    count: int,
    *,
    delay: str | timedelta = "1s",
    factor: float = 2.0,
    max: str | timedelta = "15m",
    jitter: bool = True,
) -> RetryPolicy:
    """Declare a retry policy: `retry(3)` is three retries after the first try.

    Raises `SetupError` for a negative count or a factor below 1.
    """
    if count < 0 or factor < 1:
        raise SetupError(f"retry({count}, factor={factor}): count is 0 or more, factor 1 or more")
    return RetryPolicy(
        count=count,
        delay=parse_duration(delay),
        factor=factor,
        max=parse_duration(max),
        jitter=jitter,
    )


def next_delay(
    policy: RetryPolicy, retry_number: int, *, rng: random.Random | None = None
) -> timedelta | None:
    """Return how long to wait before retry `retry_number` (from 1), or None when none is left."""
    if retry_number > policy.count:
        return None
    # The exponent is capped because factor**1100 overflows a float long before `max` matters.
    ceiling = min(
        policy.delay.total_seconds() * policy.factor ** min(retry_number - 1, 64),
        policy.max.total_seconds(),
    )
    if policy.jitter:
        ceiling *= (rng or random).random()
    return timedelta(seconds=ceiling)
