"""Rate limits: `rate=rate_limit("10/s")` accepts 10 runs in any second and skips what is over it.

Decided when an event is accepted, in the journal's transaction (`journal/sqlite/rate_limits`): what
is refused ends as `skipped` with a decision. Retries, replays, resumed runs and awaited children do
not count.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import ClassVar, overload

from turnout.service.domain.conditions import RateLimitRule
from turnout.service.domain.errors import SetupError
from turnout.service.domain.event import Event

from .rate import Rate, parse_rate


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Accept at most so many runs in any stretch of a period; with `per`, of each key."""

    rate: Rate
    per: Callable[[Event], Hashable] | None = None
    rule_id: str = "rate_limit"
    name: ClassVar[str | None] = None
    option: ClassVar[str] = "per="

    @property
    def words(self) -> str:
        """The rule as it is written."""
        return f'rate_limit("{self.rate}"{", per=…" if self.per else ""})'

    @property
    def condition(self) -> RateLimitRule:
        """What the journal asks of a new run."""
        return RateLimitRule(
            self.rule_id, self.per is not None, self.rate.count, self.rate.period, self.words
        )


@overload
def rate_limit(rate: str, /) -> RateLimit: ...
@overload
def rate_limit(rate: str, /, *, per: Callable[[Event], Hashable] | None) -> RateLimit: ...
def rate_limit(
    rate: str, /, *more: object, per: Callable[[Event], Hashable] | None = None
) -> RateLimit:
    """Skip runs that are over a rate: `rate=rate_limit("10/s")`.

    In any stretch of a second at most 10 runs are accepted; another one ends at once as `skipped`,
    with a decision that says when the next is accepted. Its sender still gets 202. The longest
    period is a day. `throttle` lets runs wait instead.

    * `rate`: how many in a time: `"10/s"`, `"100/m"`, `"5/2h"`
    * `per`: a function of the event: each key has the rate to itself; None as a key is never
      refused

    Raises `SetupError` for what is no rate, and for a name.

    ```python
    from turnout import event, flow, rate_limit


    @flow(on=event("page.seen"), rate=rate_limit("1/m", per=lambda event: event.data["user"]))
    async def greet(seen: dict[str, str]) -> str:
        return f"Hello, {seen['user']}!"
    ```
    """
    if more:
        given = ", ".join(map(repr, (rate, *more)))
        raise SetupError(
            f"rate_limit({given}): a rate limit is of one flow and takes no name; write "
            'rate_limit("10/s"), or throttle("crm", "10/s"), which flows share by its name and '
            "which lets runs wait"
        )
    return RateLimit(parse_rate(rate), per)
