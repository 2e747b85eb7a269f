"""Concurrency limits: `concurrency=limit(8)`, `limit(8, per=…)`, `limit("db", 3)`, or a list.

Counted are the runs that are running now; with `hold="run"` also those that wait, for their next
try or for what they await. Lowering a limit stops no run. Order is not promised.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Literal, overload

from turnout.service.domain.decisions import Fact
from turnout.service.domain.errors import SetupError
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import Keys
from turnout.service.domain.waiting import Cause
from turnout.service.project import AnyFlow

from .gate import Answer, Candidate, Gate, NamedGates
from .named_limit import NamedLimit

Hold = Literal["attempt", "run"]
"""Until when a run has its slot: the end of an attempt, or the end of the run."""

MOST = 1_000_000
"""The highest count of a limit."""

_MAX_NAME_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `count` runs at once: of a flow, of each key (`per`), or of all that share a name."""

    count: int
    per: Callable[[Event], Hashable] | None = None
    name: str | None = None
    hold: Hold = "attempt"
    rule_id: str = "limit"
    option: ClassVar[str] = "per="

    @property
    def words(self) -> str:
        """The limit as its author writes it."""
        given = str(self.count) if self.name is None else f'"{self.name}", {self.count}'
        keyed = "" if self.per is None else ", per=…"
        held = ', hold="run"' if self.hold == "run" else ""
        return f"limit({given}{keyed}{held})"

    def warning(self, flow: Flow[..., Any]) -> str | None:
        """Return what `turnout check` warns of where a flow declares this limit."""
        if self.count != 1 or self.name is not None or flow.ordered_by is not None:
            return None
        if flow.keeps_state and self.per is None:  # it is there so that runs share a state
            return None
        return (
            f"{self.words} does not preserve order: others overtake a run that is retried or "
            "waits; if runs must go in the order of their events, add ordered_by="
        )


@overload
def limit(
    count: int, /, *, per: Callable[[Event], Hashable] | None = ..., hold: Hold = ...
) -> Limit: ...
@overload
def limit(name: str, count: int, /) -> Limit: ...
def limit(
    given: int | str,
    count: int | None = None,
    /,
    *,
    per: Callable[[Event], Hashable] | None = None,
    hold: Hold = "attempt",
) -> Limit:
    """Declare a concurrency limit: `limit(8, per=lambda event: event.data["customer"])`.

    For `concurrency=` of a flow. `limit("db", 3)` is one limit for all flows and tasks that say it,
    and the only form for `limit=` of a task. Runs over it wait, the oldest first.

    * `count`: how many at once, from 1
    * `name`: what is shared
    * `per`: a function of the event: each key has the limit to itself. It is asked once, when the
      event arrives, and its answer is kept as text; None is no key: such a run waits for nobody
    * `hold`: `"attempt"` gives the slot back while the run sleeps, waits or is to be retried; with
      `"run"` a run keeps it from its first start to its end

    Raises `SetupError` for a count below 1.

    ```python
    from turnout import event, flow, limit


    @flow(
        on=event("order.placed"),
        concurrency=[limit(2, per=lambda event: event.data["customer"]), limit("warehouse", 5)],
    )
    async def pack(order: dict[str, str]) -> str:
        return order["customer"]
    ```
    """
    if isinstance(given, str):
        return _named(given, count, keyed=per is not None, hold=hold)
    if count is not None:
        raise SetupError(f'limit({given!r}, {count!r}): the name comes first: limit("db", 3)')
    if hold not in ("attempt", "run"):
        raise SetupError(f'hold={hold!r}: write hold="run", or leave it out')
    return Limit(_checked(f"limit({given!r})", given), per, hold=hold)


def _named(name: str, count: int | None, *, keyed: bool, hold: str) -> Limit:
    if count is None:
        raise SetupError(f"limit({name!r}): say how many at once: limit({name!r}, 3)")
    if keyed:
        raise SetupError(
            f"limit({name!r}, {count!r}, per=…): a limit that flows share has no keys; leave out "
            "the name, or per="
        )
    if hold != "attempt":
        raise SetupError(
            f"limit({name!r}, {count!r}, hold={hold!r}): only a limit of one flow can be held by "
            "waiting runs; leave out the name, or hold="
        )
    if not (name.isprintable() and 0 < len(name) <= _MAX_NAME_CHARACTERS):
        raise SetupError(
            f"limit({name!r}, {count!r}): a name is 1 to {_MAX_NAME_CHARACTERS} printable "
            "characters"
        )
    words = f"limit({name!r}, {count!r})"
    return Limit(_checked(words, count), name=name, rule_id=f"limit:{name}")


def _checked(words: str, count: object) -> int:
    if not isinstance(count, int) or isinstance(count, bool):
        raise SetupError(f"{words}: a limit is a whole number of runs, such as limit(8)")
    if count < 1:
        raise SetupError(f"{words}: to stop a flow use `turnout pause`; a limit is at least 1")
    if count > MOST:
        raise SetupError(f"{words}: {MOST:,} are the most; leave it out for no limit")
    return count


# ---------------------------------------------------------------- the gates


def limit_gates(flow: AnyFlow, named: NamedGates) -> Iterator[Gate]:
    """Yield the gates of the limits that a flow declares."""
    for rule in flow.concurrency:
        if not isinstance(rule, Limit):
            continue
        if rule.name is not None:
            yield NamedLimit.by_name(rule.name, rule.count, named)
        elif rule.hold == "run":
            yield HeldLimit(rule.count, "" if rule.per is None else rule.rule_id)
        else:
            yield FlowLimit(rule.count) if rule.per is None else KeyLimit(rule.count, rule.rule_id)


class FlowLimit(Gate):
    """At most `count` runs of the flow at once."""

    name = "flow"
    cause = Cause.LIMIT

    def __init__(self, count: int) -> None:
        self.count = count
        self._running = 0

    def check(self, run: Candidate, now: datetime) -> Answer:
        """Let a run pass while fewer than `count` run."""
        return None if self._running < self.count else "behind"

    def enter(self, run: Candidate, now: datetime) -> None:
        """Count a running run."""
        self._running += 1

    def leave(self, run: Candidate) -> None:
        """Count a run no more."""
        self._running -= 1

    def free_slots(self) -> int | None:
        """Return how many more may run; below 0 after the limit was lowered."""
        return self.count - self._running

    def used(self) -> Mapping[str | None, int]:
        """Return how many slots are in use."""
        return {None: self._running} if self._running else {}

    def facts(self, run: Candidate) -> Mapping[str, Fact]:
        """Return the rule, and how many slots are in use."""
        return _facts(f"limit({self.count})", self._running, self.count)


class KeyLimit(Gate):
    """At most `count` runs of each key at once; a run without a key waits for nobody."""

    name = "limit"
    cause = Cause.LIMIT

    def __init__(self, count: int, rule_id: str = "limit") -> None:
        self.count = count
        self.rule_id = rule_id
        self._running: dict[str, int] = {}

    def check(self, run: Candidate, now: datetime) -> Answer:
        """Let a run pass while fewer than `count` runs of its key run."""
        key = self.key(run)
        return None if key is None or self._running.get(key, 0) < self.count else "behind"

    def enter(self, run: Candidate, now: datetime) -> None:
        """Count a running run under its key."""
        key = self.key(run)
        if key is not None:
            self._running[key] = self._running.get(key, 0) + 1

    def leave(self, run: Candidate) -> None:
        """Count a run no more; a key that no run holds is forgotten."""
        key = self.key(run)
        if key is None:
            return
        left = self._running[key] - 1
        if left:
            self._running[key] = left
        else:
            del self._running[key]

    def used(self) -> Mapping[str | None, int]:
        """Return how many slots are in use, by key."""
        return {key: count for key, count in self._running.items()}  # noqa: C416  of other types

    def facts(self, run: Candidate) -> Mapping[str, Fact]:
        """Return the rule, and how many slots of the run's key are in use."""
        used = self._running.get(self.key(run) or "", 0)
        return _facts(f"limit({self.count}, per=…)", used, self.count)


class HeldLimit(Gate):
    """At most `count` runs, of the flow or of each key, from their first start to their end.

    The holders of a slot are kept by run id, with their token; 0 means that the holder waits, for
    its next try or for what it awaits. Such a run passes, since it has its slot.
    """

    name = "limit"
    cause = Cause.LIMIT

    queues_new: bool = True
    """Whether a new run waits here for those that hold a slot."""

    def __init__(self, count: int, rule_id: str = "") -> None:
        self.count = count
        self.rule_id = rule_id
        self._holders: dict[str | None, dict[str, int]] = {}

    @property
    def words(self) -> str:
        """The rule as an author writes it."""
        return f'limit({self.count}, hold="run")'

    def holders(self, run: Candidate) -> Mapping[str, int]:
        """Return who holds the slots that a run asks for, by run id."""
        return self.holders_for(run.keys)

    def holders_for(self, keys: Keys | None) -> Mapping[str, int]:
        """Return who holds the slots that a run with these keys asks for, by run id."""
        key = self.key_of(keys)
        return {} if self.rule_id and key is None else self._holders.get(key, {})

    def _asks(self, run: Candidate) -> bool:
        return not self.rule_id or self.key(run) is not None

    def check(self, run: Candidate, now: datetime) -> Answer:
        """Let a run pass that holds a slot, or while fewer than `count` slots are held."""
        holders = self.holders(run)
        return None if run.id in holders or len(holders) < self.count else "behind"

    def enter(self, run: Candidate, now: datetime) -> None:
        """Make a run a holder."""
        if self._asks(run):
            self._holders.setdefault(self.key(run), {})[run.id] = run.token

    def leave(self, run: Candidate) -> None:
        """Release the slot of a run that has ended, unless another attempt of it holds it."""
        self._release(run, run.token)

    def suspend(self, run: Candidate) -> None:
        """Keep the slot of a run that waits."""
        holders = self._holders.get(self.key(run), {})
        if holders.get(run.id) == run.token:
            holders[run.id] = 0

    def is_held_by(self, run: Candidate) -> bool:
        """Whether a run has its slot already."""
        return run.id in self.holders(run)

    def hold(self, run: Candidate) -> None:
        """Keep a slot for a run that waits, as the journal says."""
        if self._asks(run):
            self._holders.setdefault(self.key(run), {}).setdefault(run.id, 0)

    def let_go(self, run: Candidate) -> bool:
        """Release the slot of a run that is not running; False if it holds none."""
        return self._release(run, 0)

    def take_over(self, other: HeldLimit) -> None:
        """Keep the slots of runs that wait, of the limit that stood here before."""
        for key, holders in other._holders.items():
            for run_id, token in holders.items():
                if token == 0:
                    self._holders.setdefault(key, {}).setdefault(run_id, 0)

    def free_slots(self) -> int | None:
        """Return how many more may start; None if that depends on their key."""
        return None if self.rule_id else self.count - len(self._holders.get(None, ()))

    def used(self) -> Mapping[str | None, int]:
        """Return how many slots are in use, by key."""
        return {key: len(holders) for key, holders in self._holders.items()}

    def facts(self, run: Candidate) -> Mapping[str, Fact]:
        """Return the rule, how many slots are in use, and who has the only one."""
        holders = self.holders(run)
        keyed = ", per=…" if self.rule_id else ""
        facts = _facts(f'limit({self.count}{keyed}, hold="run")', len(holders), self.count)
        return facts | ({"other": next(iter(holders))} if len(holders) == 1 else {})

    def _release(self, run: Candidate, token: int) -> bool:
        key = self.key(run)
        holders = self._holders.get(key, {})
        if holders.get(run.id) != token:
            return False
        del holders[run.id]
        if not holders:
            del self._holders[key]
        return True


def _facts(rule: str, used: int, count: int) -> dict[str, Fact]:
    return {"rule": rule, "count": used, "limit": count}
