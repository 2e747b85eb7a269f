"""When to try again: pure functions from (policy, retry number, error) to a delay.

A retry of a flow is a fact in the journal, so nothing here sleeps. Not here: which errors are
final (`error_groups`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any

from .error_groups import asked_wait, deciding, problems
from .errors import FOREIGN, SetupError
from .run import Retry
from .units import parse_duration

MAX_RETRY_AFTER = timedelta(days=1)
"""The longest wait a server's `Retry-After` can ask for: a server cannot make us wait longer."""

MAX_FACTOR = 1000
"""The largest `factor`: its highest power is still a number."""

_MAX = timedelta(minutes=15)

ErrorTypes = type[BaseException] | tuple[type[BaseException], ...]


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often, how far apart and upon what to retry: `count` retries after the first try.

    The delay before retry n is `delay * factor**(n-1)`, at most `max`, then drawn evenly from
    [0, that] when `jitter` is true ("full jitter", which spreads a crowd best). Only errors of the
    types `on` are retried (empty: all), and never those of the types `not_on`.
    """

    count: int = 0
    delay: timedelta = timedelta(seconds=1)
    factor: float = 2.0
    max: timedelta = _MAX
    jitter: bool = True
    on: tuple[type[BaseException], ...] = ()
    not_on: tuple[type[BaseException], ...] = ()


def retry(
    count: int,
    *,
    delay: str | timedelta = "1s",
    factor: float = 2.0,
    max: str | timedelta | None = None,
    jitter: bool = True,
    on: ErrorTypes = (),
    not_on: ErrorTypes = (),
) -> RetryPolicy:
    """Declare a retry policy, for `retry=` of a flow or a task: `retry(3)` is three more tries.

    The pause before the n-th is drawn evenly from 0 to `delay * factor**(n-1)`, which `max` bounds.
    A server's `Retry-After` is kept, a day at most. `Fail` and `Skip` are never retried, and
    `Retry(after=…)` sets its own pause. If a task and its flow both retry, they multiply.

    * `count`: how many tries after the first one
    * `delay`: the first pause
    * `factor`: by what pauses grow, from 1 to 1000
    * `max`: the longest pause; 15 minutes, or `delay` if that is longer
    * `jitter`: `False` takes the whole pause each time, instead of a random part
    * `on`: a type of error, or a tuple of types: only those are retried; of a group of errors
      (`asyncio.TaskGroup`) each must be one
    * `not_on`: a type of error, or a tuple of types, that are not retried

    Raises `SetupError` for a negative count, a factor out of its range, or what is no type of
    error.

    ```python
    from turnout import flow, retry, task


    @task(retry=retry(5, delay="2s", max="1m", on=(OSError, TimeoutError)))
    async def fetch(number: int) -> int:
        return number * 2


    @flow
    async def double(number: int) -> int:
        return await fetch(number)
    ```
    """
    if count < 0 or not 1 <= factor <= MAX_FACTOR:
        raise SetupError(
            f"retry({count}, factor={factor}): count is 0 or more, factor from 1 to {MAX_FACTOR}"
        )
    first = parse_duration(delay)
    usual = _MAX if first < _MAX else first
    return RetryPolicy(
        count=count,
        delay=first,
        factor=factor,
        max=usual if max is None else parse_duration(max),
        jitter=jitter,
        on=_types(on, "on"),
        not_on=_types(not_on, "not_on"),
    )


def _types(given: object, option: str) -> tuple[type[BaseException], ...]:
    listed = given if isinstance(given, tuple) else (given,)
    for each in listed:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise SetupError(
                f"retry({option}={given!r}): write types of errors, {option}=(OSError, ValueError)"
            )
    return listed


def delay_after(
    policy: RetryPolicy, retry_number: int, error: BaseException, *, now: datetime
) -> timedelta | None:
    """Return how long to wait after `error` before retry `retry_number`, or None for no retry.

    `Retry(after=…)` sets the delay itself, and asks for a retry whatever `on` is. A server that
    asked for time (`Retry-After`, RFC 9110 section 10.2.3) gets it: the delay is never shorter.
    A group is retried if each of its errors is.
    """
    delay = next_delay(policy, retry_number)
    decides = deciding(error)
    if isinstance(decides, Retry):
        after = asked_wait(decides)
        return delay if delay is None or after is None else after
    if delay is None or not _is_retried(policy, error):
        return None
    return max([delay, *(asked_for(each, now=now) for each in problems(error))])


def _is_retried(policy: RetryPolicy, error: BaseException) -> bool:
    """Whether a policy is for an error, or for each one of its group."""
    found = problems(error)
    if isinstance(error, policy.not_on) or any(isinstance(each, policy.not_on) for each in found):
        return False
    if not policy.on or isinstance(error, policy.on):
        return True
    return all(isinstance(each, policy.on) for each in found)


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


def asked_for(error: BaseException, *, now: datetime) -> timedelta:
    """Return the wait an error carries: its `retry_after`, or its response's `Retry-After`.

    Both are in seconds; the header may be an HTTP date. They are read by name, so the errors of any
    HTTP client will do. What cannot be read asks for no wait, and a day is the longest.
    """
    try:
        asked = _asked(error)
    except FOREIGN:  # properties of an author's error class: foreign code
        asked = None
    if isinstance(asked, timedelta):
        asked = asked.total_seconds()
    seconds = _seconds(asked, now)
    return timedelta(seconds=min(max(seconds, 0.0), MAX_RETRY_AFTER.total_seconds()))


def _asked(error: BaseException) -> Any:
    asked: Any = getattr(error, "retry_after", None)
    if asked is None:
        headers = getattr(getattr(error, "response", error), "headers", None)
        if isinstance(headers, Mapping | Message):  # Message: what urllib's HTTPError holds
            asked = headers.get("retry-after") or headers.get("Retry-After")
    return asked


def _seconds(asked: object, now: datetime) -> float:
    if isinstance(asked, int | float):
        most = MAX_RETRY_AFTER.total_seconds()  # some integers are too large for a float
        return 0.0 if asked != asked else float(min(asked, most))
    text = asked.strip() if isinstance(asked, str) else ""
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return ((until if until.tzinfo else until.replace(tzinfo=UTC)) - now).total_seconds()
