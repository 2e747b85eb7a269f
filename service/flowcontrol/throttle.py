"""Throttles: `rate=throttle("100/m")` lets no more than 100 runs start in any 60 seconds.

Counted are first attempts, retries of the flow, and runs queued again after the process died; not
retries of a task, and not runs that resume from a wait. What has started is counted whatever came
of it. A run that may not start yet waits for the next free instant, behind those before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, ClassVar, overload

from turnout.service.domain.decisions import Fact
from turnout.service.domain.errors import SetupError
from turnout.service.domain.event import Event
from turnout.service.domain.run import Start
from turnout.service.domain.waiting import Cause
from turnout.service.project import AnyFlow

from .gate import Answer, Candidate, Gate, NamedGates
from .rate import Rate, SlidingLog, parse_rate
from .rate_limit import RateLimit


@dataclass(frozen=True, slots=True)
class Throttle:
    """At most so many starts in any stretch of a period; with `per`, of each key.

    With a `name` it is shared by all flows that say it.
    """

    rate: Rate
    name: str | None = None
    per: Callable[[Event], Hashable] | None = None
    rule_id: str = "throttle"
    option: ClassVar[str] = "per="

    @property
    def words(self) -> str:
        """The rule as it is written."""
        name = "" if self.name is None else f'"{self.name}", '
        return f'throttle({name}"{self.rate}"{", per=…" if self.per else ""})'


@overload
def throttle(rate: str, /, *, per: Callable[[Event], Hashable] | None = None) -> Throttle: ...
@overload
def throttle(
    name: str, rate: str, /, *, per: Callable[[Event], Hashable] | None = None
) -> Throttle: ...
def throttle(
    name: Any, rate: Any = None, /, *, per: Callable[[Event], Hashable] | None = None
) -> Throttle:
    """Let runs wait so that no more start than a rate says: `rate=throttle("100/m")`.

    In any stretch of 60 seconds no more than 100 start: at once while there is room, without a
    burst on top, over restarts too. `throttle("crm", "100/m")` is shared by all flows that say it.
    The longest period is a day. `rate_limit` skips runs instead.

    * `name`: what is shared
    * `rate`: how many in a time: `"10/s"`, `"100/m"`, `"5/2h"`
    * `per`: a function of the event: each key has the rate to itself; None as a key waits for
      nobody

    Raises `SetupError` for what is no rate.

    ```python
    from turnout import event, flow, throttle


    @flow(on=event("customer.changed"), rate=throttle("crm", "5/s"))
    async def sync(customer: dict[str, str]) -> str:
        return customer["id"]
    ```
    """
    if rate is None:
        return Throttle(parse_rate(name), per=per)
    if not isinstance(name, str) or not name.isprintable() or not name:
        raise SetupError(f"throttle({name!r}, {rate!r}): a name is printable text")
    return Throttle(parse_rate(rate), name, per, f"throttle:{name}")


def numbered(rules: Sequence[Throttle | RateLimit]) -> tuple[Throttle | RateLimit, ...]:
    """Return the rules of one flow, each with an id of its own: `throttle`, `throttle.2`.

    Raises `SetupError` for a name that is said twice.
    """
    seen: Counter[str] = Counter()
    placed: list[Throttle | RateLimit] = []
    for rule in rules:
        seen[rule.rule_id] += 1
        number = seen[rule.rule_id]
        if number == 1:
            placed.append(rule)
            continue
        if isinstance(rule, Throttle) and rule.name is not None:
            raise SetupError(f"rate= names the throttle {rule.name!r} twice")
        placed.append(replace(rule, rule_id=f"{rule.rule_id}.{number}"))
    return tuple(placed)


def throttle_gates(flow: AnyFlow, named: NamedGates) -> Iterable[Gate]:
    """Return the gates of a flow's throttles; a reload changes the rate of one that is there."""
    for rule in flow.rate:
        if not isinstance(rule, Throttle):
            continue
        owner = flow.name if rule.name is None else ""
        known = ("throttle", rule.name) if rule.name else ("throttle of", f"{owner}/{rule.rule_id}")
        gate = named.get(known)
        if not isinstance(gate, ThrottleGate):
            gate = named[known] = ThrottleGate(owner, rule)
        gate.declare(rule)
        yield gate


class ThrottleGate(Gate):
    """Keeps one throttle: the log of what has started, and the rate declared now.

    Until what the journal has recorded of it `is_recalled`, its flows must start nothing.
    """

    name = "throttle"
    counts_starts = True
    cause = Cause.RATE

    def __init__(self, flow: str, rule: Throttle) -> None:
        self.flow = flow
        self.rule = rule
        self.rate = rule.rate
        self.log = SlidingLog(rule.rate.period)
        self.is_recalled = False

    def declare(self, rule: Throttle) -> None:
        """Keep to the rate of a rule from now on; what has started counts for it."""
        self.rule, self.rate = rule, rule.rate
        self.log.period = self.rate.period
        self.rule_id = "" if rule.per is None else rule.rule_id

    @property
    def owns(self) -> tuple[str, str]:
        """The flow and the id of the rule under which its starts are recorded."""
        return self.flow, self.rule.rule_id

    def key(self, run: Candidate) -> str | None:
        """Return the key under which a run waits here."""
        return None if run.resumes else super().key(run)

    def _counted_under(self, run: Candidate) -> str | None:
        """Return the key under which a start of the run counts; None: it does not."""
        if run.resumes:
            return None
        return self.key(run) if self.rule_id else ""

    def check(self, run: Candidate, now: datetime) -> Answer:
        """Let a run pass that does not count, or fits in; else at the next free instant."""
        key = self._counted_under(run)
        return None if key is None else self.log.next_free(key, self.rate, now)

    def facts(self, run: Candidate) -> Mapping[str, Fact]:
        """Return the throttle as declared."""
        return {"rule": self.rule.words}

    def start(self, run: Candidate, now: datetime) -> Start | None:
        """Count a start at exactly the instant at which it was decided."""
        key = self._counted_under(run)
        if key is None:
            return None
        self.log.add(key, now)
        return Start(self.flow, self.rule.rule_id, key, now, now + self.rate.period)

    def give_back(self, run: Candidate) -> None:
        """Forget a start that did not happen."""
        for start in run.starts:
            if (start.flow, start.rule_id) == self.owns:
                self.log.remove(start.key, start.at)

    def inherit(self, other: Gate) -> None:
        """Count what a renamed flow has started under its own throttle of this id."""
        if (
            isinstance(other, ThrottleGate)
            and self.rule.rule_id == other.rule.rule_id
            and self.flow
        ):
            self.log.take_over(other.log)
            self.is_recalled = self.is_recalled or other.is_recalled
