"""Rules of flow control as Hypothesis draws them: what is simulated, and what a flow declares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeAlias

from tests.support.dispatch_machine import MOST_FLOWS
from tests.support.flow_control_simulator import (
    Bounded,
    CancelledBy,
    Classed,
    Mode,
    RateLimited,
    Rule,
    StartsInTime,
    Throttled,
    Unique,
)
from tests.support.histories import Draw, booleans, integers, lists, one_of, tuples
from tests.support.simulated_breaker import Needs
from turnout import dependency, event, rate_limit, throttle, unique

CALLED_OFF = event("called-off")


class Shared:
    """The rules that flows share by a name."""

    def __init__(self) -> None:
        self.throttle = Throttled("", 2, timedelta(seconds=10), shared="crm")
        self.needs = Needs("", failures=1, probe=timedelta(seconds=10))


Make: TypeAlias = Callable[[Shared, str, int, int], Rule]
"""Makes a rule of what flows share, the part of the event that is its key, a count and seconds."""

MAKERS: dict[str, Make] = {
    "throttle": lambda _, per, count, seconds: Throttled(per, count, length(seconds)),
    "shared": lambda shared, *_: shared.throttle,
    "rate_limit": lambda _, per, count, seconds: RateLimited(per, count, length(seconds)),
    "unique": lambda _, per, count, seconds: Unique("work", length(seconds) if seconds else None),
    "skip": lambda _, per, *more: Mode(per, "skip"),
    "replace": lambda _, per, *more: Mode(per, "replace"),
    "latest": lambda _, per, *more: Mode(per, "latest"),
    "priority": lambda *_: Classed("class"),
    "start_timeout": lambda _, per, count, seconds: StartsInTime("", length(seconds)),
    "cancel_on": lambda *_: CancelledBy("work"),
    "max_queued": lambda _, per, count, seconds: Bounded("", count),
    "needs": lambda shared, *_: shared.needs,
}

Drawn: TypeAlias = tuple[str, bool, int, int]
"""A rule: its kind, whether it has a key, a count, and seconds."""


def rules(kinds: Sequence[str], least: int = 0) -> Draw:
    """Draw the rules of each flow, at least so many, among rules of these kinds."""
    rule = tuples(one_of(*kinds), booleans(), integers(1, 2), one_of(0, 5, 30))
    return lists(lists(rule, least, 3), MOST_FLOWS, MOST_FLOWS)


def length(seconds: int) -> timedelta:
    return timedelta(seconds=seconds or 10)


def make_rule(drawn: Drawn, shared: Shared) -> Rule:
    """Return a rule as it is simulated."""
    kind, keyed, count, seconds = drawn
    return MAKERS[kind](shared, "work" if keyed else "", count, seconds)


# ---------------------------------------------------------------- what a flow declares


def options_of(rules: Sequence[Rule]) -> dict[str, Any]:
    """Return the options of a flow with these rules."""
    rates = [rate for each in rules if (rate := _rate_of(each)) is not None]
    options: dict[str, Any] = {"rate": rates} if rates else {}
    for each in rules:
        options |= _option_of(each)
    return options


def _rate_of(rule: Rule) -> Any:
    match rule:
        case Throttled(shared=""):
            return throttle(_rate(rule), per=_asks(rule.per))
        case Throttled():
            return throttle(rule.shared, _rate(rule), per=_asks(rule.per))
        case RateLimited():
            return rate_limit(_rate(rule), per=_asks(rule.per))
    return None


def _option_of(rule: Rule) -> dict[str, Any]:
    per = _asks(rule.per)
    match rule:
        case Unique():
            until = "done" if rule.until is None else rule.until
            return {"unique": unique(per, until=until)}
        case Mode():
            return {"mode": rule.mode, "key": per}
        case Classed():
            return {"priority": per}
        case StartsInTime():
            return {"start_timeout": rule.limit}
        case CancelledBy():
            return {"cancel_on": CALLED_OFF, "match": rule.per}
        case Bounded():
            return {"max_queued": rule.count}
        case Needs():
            share = f"100% of {rule.failures}"
            return {
                "needs": dependency(
                    "crm", open_after=share, probe=rule.probe, errors=ConnectionError
                )
            }
    return {}


def _asks(part: str) -> Any:
    return (lambda event: event.data[part]) if part else None


def _rate(rule: Throttled | RateLimited) -> str:
    return f"{rule.count}/{round(rule.period.total_seconds())}s"
