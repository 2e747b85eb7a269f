"""How much of each rule is in use: what `turnout limits` shows of limits, rates and breakers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from heapq import nlargest
from itertools import islice
from typing import Literal, NamedTuple, TypeAlias

from .dependency import BreakerStatus
from .limit import FlowLimit, HeldLimit, KeyLimit, Limit
from .named_limit import NamedLimit
from .overrides import limit_name
from .priority import HIGH, LOW, NORMAL, SHARES
from .rate_limit import RateLimit
from .throttle import ThrottleGate

Kind = Literal["slots", "limit", "rate", "breaker", "priority", "budget"]

LimitGate: TypeAlias = FlowLimit | KeyLimit | HeldLimit | NamedLimit

BUSIEST = 5
"""How many keys of a rule are shown, the busiest ones."""

MOST_KEYS_LOOKED_AT = 1_000
"""How many keys of a throttle are looked at: those that started last."""


class KeyUse(NamedTuple):
    """How much of a rule one key uses."""

    key: str
    used: int
    next_free: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A rule and how much of it is in use.

    `name` is that of a named rule, or of the flow that declares it (`bill`; its second limit is
    `bill/limit.2`). `used` counts over all keys, `max` is for each of them; of a breaker they are
    the attempts that failed, and those that open it. `declared` is what flow files say where an
    operator has set another `max`, under `full_name`. `next_free` is when the next run may start,
    None for now or when one ends. `state` and `reason` are those of a breaker, `level` is that of a
    priority class, `accepted` the id and the period of a rate limit, whose log the journal has.
    """

    kind: Kind
    name: str
    full_name: str = ""
    rule: str
    flows: tuple[str, ...]
    used: int
    max: int | None
    declared: int | None = None
    next_free: datetime | None = None
    keys: Sequence[KeyUse] = ()
    key_count: int = 0
    level: int | None = None
    accepted: tuple[str, timedelta] | None = None
    state: str | None = None
    reason: str = ""


def rule_name(flow: str, name: str | None, rule_id: str) -> str:
    """Return how a rule is named: by its own name, or as that of a flow."""
    if name is not None:
        return name
    return flow if "." not in rule_id else f"{flow}/{rule_id}"


LEVELS = {HIGH: "high", NORMAL: "normal", LOW: "low"}


def use_of_slots(flows: tuple[str, ...], used: int, count: int) -> Use:
    """Return the use of the slots that all flows share (the setting `concurrency`)."""
    rule = f"concurrency = {count}"
    return Use(kind="slots", name="concurrency", rule=rule, flows=flows, used=used, max=count)


def use_of_class(flows: tuple[str, ...], level: int, running: int) -> Use:
    """Return how many runs of a priority class run."""
    rule = f"{SHARES[level]} of {sum(SHARES.values())} starts"
    return Use(
        kind="priority", name=LEVELS[level], rule=rule, flows=flows, used=running, max=None,
        level=level,
    )  # fmt: skip


def use_of_limit(name: str, flows: tuple[str, ...], rule: Limit, gate: LimitGate) -> Use:
    """Return the use of a limit; `rule` is what the flow file says."""
    used, count = gate.used(), gate.count
    keys = {key: number for key, number in used.items() if key is not None}
    return Use(
        kind="limit",
        name=name,
        full_name=limit_name(flows[0], rule),
        rule=rule.words,
        flows=flows,
        used=sum(used.values()),
        max=count,
        declared=None if count == rule.count else rule.count,
        keys=[KeyUse(key, keys[key]) for key in nlargest(BUSIEST, keys, keys.__getitem__)],
        key_count=len(keys),
    )


def use_of_throttle(flows: tuple[str, ...], gate: ThrottleGate, now: datetime) -> Use:
    """Return the use of a throttle: what has started within its period."""
    rule, rate, log = gate.rule, gate.rate, gate.log
    looked_at = islice(reversed(list(log.keys())), MOST_KEYS_LOOKED_AT)
    used = {key: log.count(key, rate, now) for key in looked_at}
    used = {key: number for key, number in used.items() if number}
    free = {key: log.next_free(key, rate, now) for key in used}
    is_keyed = rule.per is not None
    busiest = nlargest(BUSIEST, used, used.__getitem__) if is_keyed else ()
    return Use(
        kind="rate",
        name=rule_name(flows[0], rule.name, rule.rule_id),
        rule=rule.words,
        flows=flows,
        used=sum(used.values()),
        max=rate.count,
        next_free=None if is_keyed else free.get(""),
        keys=[KeyUse(key, used[key], free[key]) for key in busiest],
        key_count=len(used) if is_keyed else 0,
    )


def use_of_rate_limit(flow: str, rule: RateLimit) -> Use:
    """Return a rate limit; what it has accepted is counted in the journal: `with_accepted`."""
    return Use(
        kind="rate",
        name=rule_name(flow, None, rule.rule_id),
        rule=rule.words,
        flows=(flow,),
        used=0,
        max=rule.rate.count,
        accepted=(rule.rule_id, rule.rate.period),
    )


def with_accepted(use: Use, keys: Sequence[KeyUse]) -> Use:
    """Return the use of a rate limit, given what it has accepted by key, the busiest first."""
    used = sum(key.used for key in keys)
    if len(keys) == 1 and not keys[0].key:
        return replace(use, used=used, next_free=keys[0].next_free)
    return replace(use, used=used, keys=keys[:BUSIEST], key_count=len(keys))


def use_of_breaker(status: BreakerStatus) -> Use:
    """Return how near a breaker is to opening, and whether it is open."""
    stored, declared = status.stored, status.declared
    return Use(
        kind="breaker",
        name=stored.name,
        rule=str(declared),
        flows=status.flows,
        used=status.failed,
        max=declared.failures,
        next_free=stored.until,
        state=str(stored.state),
        reason=stored.reason,
    )
