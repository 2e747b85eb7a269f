"""Admission: the gates of a flow, and the runs that are inside them.

A run that asks enters every gate or none. Which runs are inside is the only count: a gate that a
reload declares counts them anew. Not here: whose turn it is, and who waits (`dispatch`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import count, product

from turnout.service.domain.run import Start
from turnout.service.domain.waiting import Cause
from turnout.service.project import AnyFlow

from .dependency import Breaker, Breakers
from .gate import Candidate, Gate, NamedGates, Refusal
from .isolation import Isolation
from .limit import HeldLimit, Limit, limit_gates
from .mode import mode_gates
from .order import Order
from .overrides import limits_of
from .slots import Slots
from .throttle import ThrottleGate, throttle_gates

GATES: tuple[Callable[[AnyFlow, NamedGates], Iterable[Gate]], ...] = (
    mode_gates,
    limit_gates,
    throttle_gates,
)
"""What makes the gates of a flow from its declaration, in the order in which they are asked.

A gate with a name is made once and shared by all flows that name it.
"""


class Admission:
    """The gates that the runs of all flows share."""

    def __init__(self, concurrency: int) -> None:
        self.slots = Slots(concurrency)
        self.isolation = Isolation()
        self.named: NamedGates = {}
        self.breakers = Breakers()
        self.tokens = count(1)

    def unread_throttles(self) -> list[ThrottleGate]:
        """Return the throttles that do not know yet what the journal has recorded of them."""
        gates = (gate for gate in self.named.values() if isinstance(gate, ThrottleGate))
        return [gate for gate in gates if not gate.is_recalled]

    def recall(self, starts: Iterable[Start]) -> None:
        """Count for throttles that are new what the journal has recorded, in that order."""
        gates = {gate.owns: gate for gate in self.unread_throttles()}
        for start in starts:
            gate = gates.get((start.flow, start.rule_id))
            if gate is not None:
                gate.log.add(start.key, start.at)
        for gate in gates.values():
            gate.is_recalled = True


class FlowGates:
    """The gates of one flow: `order`, those it has `declared`, and those all flows share.

    `needs` are the breakers of what it needs; a run waits for them together with its whole flow.
    `inside` holds the runs that have entered and not left, by token.
    """

    def __init__(self, admission: Admission) -> None:
        self.order = Order()
        self.declared: tuple[Gate, ...] = ()
        self.needs: tuple[Breaker, ...] = ()
        self.start_timeout: timedelta | None = None
        self.named: tuple[Gate, ...] = ()
        self.held: tuple[HeldLimit, ...] = ()
        self.keyed: AnyFlow | None = None
        self._rule_ids: frozenset[str] = frozenset()
        self.inside: dict[int, Candidate] = {}
        self._admission = admission
        self._gates: tuple[Gate, ...] = (admission.slots,)
        self._counting: tuple[Gate, ...] = ()
        self._limits: tuple[Gate, ...] = ()
        self._gates_of_isolated: tuple[Gate, ...] = (admission.slots, admission.isolation)

    def declare(self, flow: AnyFlow, now: datetime) -> None:
        """Use the rules a flow declares now; runs that are inside enter the gates of these."""
        self.start_timeout = flow.start_timeout
        self.keyed = flow if flow.keyed else None
        self._rule_ids = frozenset(rule.rule_id for rule in flow.keyed)
        before, named = self.declared, self._admission.named
        made = [(make, gate) for make in GATES for gate in make(flow, named)]
        self.declared = tuple(gate for _, gate in made)
        self._limits = tuple(gate for make, gate in made if make is limit_gates)
        _exchange(before, self.declared, self.inside.values(), now)
        needs = self._admission.breakers.of(flow, now)
        _exchange(self.needs, needs, self.inside.values(), now)
        self.needs = needs
        self.named = tuple(gate for gate in self.declared if gate.named)
        held = [gate for gate in self.declared if isinstance(gate, HeldLimit)]
        for now_held, held_before in _same_rule(held, self.held):
            now_held.take_over(held_before)
        self.held = tuple(held)
        slots, isolation = self._admission.slots, self._admission.isolation
        self._gates = (*needs, slots, *self.declared)
        self._gates_of_isolated = (*needs, slots, isolation, *self.declared)
        self._counting = tuple(gate for gate in self.declared if gate.counts_starts)

    def cause_at(self, rule_id: str) -> Cause:
        """Return what a run waits for behind older ones with its key by a rule."""
        for gate in self.declared:
            if (gate.rule_id or gate.name) == rule_id:
                return gate.cause
        return self.order.cause

    def refusal(self, run: Candidate, now: datetime) -> Refusal | None:
        """Return the first refusal of a run, without effect: slots are asked last."""
        order = () if run.order_key is None else (self.order,)
        isolation = (self._admission.isolation,) if run.isolated else ()
        for gate in (*order, *self.needs, *isolation, *self.declared, self._admission.slots):
            answer = gate.check(run, now)
            if answer is not None:
                return Refusal(gate, answer)
        return None

    def admit(self, run: Candidate, now: datetime) -> Refusal | None:
        """Let a run enter every gate, or none and return the first refusal."""
        if run.order_key is not None:
            answer = self.order.check(run, now)
            if answer is not None:
                return Refusal(self.order, answer)
        for gate in self._gates_of_isolated if run.isolated else self._gates:
            answer = gate.check(run, now)
            if answer is not None:
                return Refusal(gate, answer)
        self.enter(run, now)
        if self._counting:
            run.starts = [start for gate in self._counting if (start := gate.start(run, now))]
        return None

    def give_back(self, run: Candidate) -> Sequence[Gate]:
        """Forget that a run has started; return the gates that may let another one pass now."""
        for gate in self._counting:
            gate.give_back(run)
        run.starts = ()
        return self._counting

    def ask(self, run: Candidate, now: datetime) -> Refusal | None:
        """Do as `admit` for a run that is written: if it is refused, it holds its ordering key.

        One that waits for isolation has its slots back meanwhile: it had begun as the process died.
        """
        refusal = self.admit(run, now)
        if refusal is None:
            return None
        if run.order_key is not None:
            self.order.hold(run)
        if refusal.gate is self._admission.isolation:
            for gate in self.held:
                if gate.check(run, now) is None:
                    gate.hold(run)
        return refusal

    def enter(self, run: Candidate, now: datetime) -> None:
        """Let a run enter every gate, whatever they say: it runs."""
        run.token = next(self._admission.tokens)
        self.inside[run.token] = run
        if run.order_key is not None:
            self.order.enter(run, now)
        for gate in self._gates_of_isolated if run.isolated else self._gates:
            gate.enter(run, now)

    def leave(self, run: Candidate, *, keeps_key: bool, goes_on: bool = False) -> None:
        """Let a run leave every gate; with `keeps_key` it goes on holding its ordering key.

        One that `goes_on` later keeps its slots at the limits with `hold="run"`.
        """
        for gate in self._gates_of_isolated if run.isolated else self._gates:
            (gate.suspend if goes_on else gate.leave)(run)
        if run.order_key is not None:
            (self.order.suspend if keeps_key else self.order.leave)(run)
        del self.inside[run.token]
        run.token = 0

    def take_over(self, other: FlowGates, now: datetime) -> None:
        """Take the runs and the held keys of a flow that has been renamed to this one."""
        self.order.take_over(other.order)
        for held, held_before in _same_rule(self.held, other.held):
            held.take_over(held_before)
        self.inside.update(other.inside)
        _exchange(other.declared, self.declared, other.inside.values(), now)
        _exchange(other.needs, self.needs, other.inside.values(), now)
        for gate, theirs in product(self._counting, other._counting):
            gate.inherit(theirs)
        other.inside = {}

    def lacks_keys(self, run: Candidate) -> bool:
        """Whether a rule is newer than the run, which has no key for it yet."""
        return bool(self._rule_ids) and (run.keys is None or not self._rule_ids <= run.keys.keys())

    def is_held_by(self, run: Candidate) -> bool:
        """Whether a run has kept a slot while it does not run."""
        return any(gate.is_held_by(run) for gate in self.held)

    @property
    def is_full(self) -> bool:
        """Whether every slot that runs of the flow keep until they end is held."""
        slots = (gate.free_slots() for gate in self.held)
        return any(free is not None and free <= 0 for free in slots)

    def limits(self, flow: AnyFlow) -> Iterator[tuple[Limit, Gate]]:
        """Yield the limits that a flow declares, each with its gate."""
        return zip(limits_of(flow), self._limits, strict=True)

    def free_slots(self) -> int:
        """Return how many more runs of the flow may start, keys apart."""
        slots = [gate.free_slots() for gate in self._gates]
        return min(free for free in slots if free is not None)


def _exchange(
    before: Iterable[Gate], after: Iterable[Gate], runs: Iterable[Candidate], now: datetime
) -> None:
    """Let runs that are inside go over from some gates to others; a shared one may be in both."""
    for run in runs:
        for gate in after:
            if gate not in before:
                gate.enter(run, now)
        for gate in before:
            if gate not in after:
                gate.leave(run)


def _same_rule(
    now: Iterable[HeldLimit], before: Iterable[HeldLimit]
) -> Iterator[tuple[HeldLimit, HeldLimit]]:
    """Pair the limits that are of one rule before and after a change."""
    by_rule = {gate.rule_id: gate for gate in before}
    return ((gate, by_rule[gate.rule_id]) for gate in now if gate.rule_id in by_rule)
