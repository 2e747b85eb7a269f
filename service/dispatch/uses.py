"""What is in use now of every rule that the served flows declare: see `flowcontrol/use`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime

from turnout.service.flowcontrol.limit import Limit
from turnout.service.flowcontrol.overrides import limit_name, short_names
from turnout.service.flowcontrol.priority import CLASSES, NORMAL
from turnout.service.flowcontrol.rate_limit import RateLimit
from turnout.service.flowcontrol.throttle import ThrottleGate
from turnout.service.flowcontrol.use import (
    LimitGate,
    Use,
    use_of_breaker,
    use_of_class,
    use_of_limit,
    use_of_rate_limit,
    use_of_slots,
    use_of_throttle,
)
from turnout.service.project import AnyFlow

from .scheduling import Scheduler


def uses_now(flows: Mapping[str, AnyFlow], scheduler: Scheduler, now: datetime) -> list[Use]:
    """Return the use of every rule, one that flows share once; the slots come first."""
    served = dict(sorted(flows.items()))
    used = sum(scheduler.held_slots().values())
    return [
        use_of_slots(tuple(served), used, used + scheduler.free_slots),
        *_limits(served, scheduler),
        *_throttles(served, scheduler, now),
        *(
            use_of_rate_limit(name, rule)
            for name, flow in served.items()
            for rule in flow.rate
            if isinstance(rule, RateLimit)
        ),
        *map(use_of_breaker, scheduler.breakers.statuses()),
        *_classes(served, scheduler),
    ]


def _limits(flows: Mapping[str, AnyFlow], scheduler: Scheduler) -> Iterator[Use]:
    shared: dict[LimitGate, tuple[str, Limit, list[str]]] = {}
    for name, flow in flows.items():
        names = short_names(flow)
        for rule, gate in scheduler.queue(name).gates.limits(flow):
            if isinstance(gate, LimitGate):
                short = names[limit_name(name, rule)]
                shared.setdefault(gate, (short, rule, []))[2].append(name)
    for gate, (short, rule, sharing) in shared.items():
        yield use_of_limit(short, tuple(sharing), rule, gate)


def _throttles(flows: Mapping[str, AnyFlow], scheduler: Scheduler, now: datetime) -> Iterator[Use]:
    shared: dict[ThrottleGate, list[str]] = {}
    for name in flows:
        for gate in scheduler.queue(name).gates.declared:
            if isinstance(gate, ThrottleGate):
                shared.setdefault(gate, []).append(name)
    for gate, sharing in shared.items():
        yield use_of_throttle(tuple(sharing), gate, now)


def _classes(flows: Mapping[str, AnyFlow], scheduler: Scheduler) -> Iterator[Use]:
    """Yield how many runs of each priority class run, of the flows that have classes."""
    classed = tuple(name for name, flow in flows.items() if flow.priority is not None)
    running: Counter[int] = Counter()
    for name in classed:
        for run in scheduler.queue(name).gates.inside.values():
            running[run.priority or NORMAL] += 1
    for level in CLASSES if classed else ():
        yield use_of_class(classed, level, running[level])
