"""Random histories of flows that use flow control, against the simulator of what it promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.support.dispatch_machine import (
    MOST_FLOWS,
    NUMBERS,
    ORDERS,
    POLICIES,
    STEPS,
    DispatchMachine,
    Policy,
)
from tests.support.dispatch_simulator import ENDED, SimulatedFlow, SimulatedRun
from tests.support.drawn_rules import (
    CALLED_OFF,
    MAKERS,
    Drawn,
    Shared,
    make_rule,
    options_of,
    rules,
)
from tests.support.flow_control_simulator import (
    Bounded,
    CancelledBy,
    Classed,
    ControlledRun,
    FlowControlSimulator,
    Mode,
    Verdict,
)
from tests.support.histories import Draw, action, lists
from turnout.service.domain.breaker import StoredBreaker
from turnout.service.domain.event import Event
from turnout.service.domain.run import RunState
from turnout.service.flowcontrol.priority import NORMAL
from turnout.testing import typed_event

S = RunState


class FlowControlMachine(DispatchMachine):
    """What is done to a service whose flows have rules, and the simulator that is told of it."""

    @classmethod
    def beginning(cls) -> Mapping[str, Draw]:
        return {**super().beginning(), "rules": rules(list(MAKERS))}

    def begin(
        self, slots: int, policies: list[Policy], bounds: int, rules: Sequence[list[Drawn]] = ()
    ) -> None:
        shared = Shared()
        self.needs = shared.needs
        self.declared_rules = [
            list({made.name: made for made in (make_rule(each, shared) for each in drawn)}.values())
            for drawn in rules
        ]
        super().begin(slots, policies, bounds)

    def simulate(self, slots: int, flows: list[SimulatedFlow]) -> FlowControlSimulator:
        self.controlled = FlowControlSimulator(
            slots, flows, lambda: self.service.now, self.declared_rules
        )
        self.controlled.counts_turns = False  # a mode or a rate changes whose turn it is
        return self.controlled

    def options(self, each: SimulatedFlow) -> dict[str, Any]:
        return options_of(self.declared_rules[each.number])

    # ------------------------------------------------------------ what the simulator is told

    def told(self, what: str, call: Any) -> None:
        self.controlled.decided_at = call.options.get("now") if what == "done" else None
        super().told(what, call)
        self.controlled.decided_at = None

    def told_append_done(self, entries: Sequence[Any], result: Sequence[Any]) -> None:
        self.check_bounds(entries, result)
        for entry, stored in zip(entries, result, strict=True):
            if stored.duplicate or stored.conflict:
                continue
            self.data[stored.event_seq] = entry.event.data
            if entry.event.type == CALLED_OFF.event_type:
                self.called_off(entry.event, stored)
            else:
                self.decided(entry.runs, stored, entry.event.data)

    def told_append_answered(self, entries: Sequence[Any], result: Sequence[Any]) -> None:
        for stored in result:
            self.stop_cancelled(stored)

    def stop_cancelled(self, ends: Any) -> None:
        """Learn that no code of cancelled runs begins any more."""
        for run in ends.cancelled:
            self.simulator.cancel_answered(run.id)

    def told_append_refused(self, entries: Sequence[Any], result: None) -> None:
        """Hear of a delivery of which nothing is stored."""
        flows = {run.flow: self.flow_of(run) for entry in entries for run in entry.runs}
        if not any(
            bound.is_full(self.others_of(flow)) and not self.is_paused(name)
            for name, flow in flows.items()
            for bound in self.bounds_of(flow)
        ):
            self.simulator.faults.append(f"flows {list(flows)} are not full")

    def check_bounds(self, entries: Sequence[Any], result: Sequence[Any]) -> None:
        """Check that no delivery was stored that finds a queue full at its first run."""
        new = [
            run
            for entry, stored in zip(entries, result, strict=True)
            for run in entry.runs
            if not (stored.duplicate or stored.conflict) and run.id not in stored.refused
        ]
        first = {self.flow_of(run).number: run for run in reversed(new) if run.state is S.QUEUED}
        for run in first.values():
            flow = self.flow_of(run)
            for bound in self.bounds_of(flow):
                is_full = bound.is_overfull(self.others_of(flow)) and not self.is_paused(run.flow)
                if is_full and not self.ends_others(flow):
                    self.simulator.faults.append(
                        f"run {run.seq} is stored, and flow {flow.number} is full"
                    )

    def bounds_of(self, flow: SimulatedFlow) -> list[Bounded]:
        return [each for each in self.declared_rules[flow.number] if isinstance(each, Bounded)]

    def is_paused(self, name: str) -> bool:
        """Whether a flow is paused on disk; the process may not know it yet."""
        return f"flow:{name}" in self.paused

    def others_of(self, flow: SimulatedFlow) -> list[ControlledRun]:
        runs = self.simulator.runs.values()
        return [run for run in runs if run.flow is flow and isinstance(run, ControlledRun)]

    def ends_others(self, flow: SimulatedFlow) -> bool:
        """Whether new runs of a flow may make room by ending older ones."""
        return any(isinstance(each, Mode) for each in self.declared_rules[flow.number])

    def called_off(self, sent: Event, stored: Any) -> None:
        """Compare the runs that an event has cancelled with those that it should have.

        While a flow is being served again, or not any more, its runs may be cancelled or not.
        """
        work = sent.data["work"]
        meant = [
            run
            for run in self.simulator.runs.values()
            if run.data["work"] == work and work is not None and run.state not in ENDED
            if any(isinstance(each, CancelledBy) for each in self.declared_rules[run.flow.number])
        ]
        ended = {run.id for run in stored.cancelled}
        changing = {run.id for run in meant if run.flow.served != run.flow.served_at_rest}
        served = {run.id for run in meant if run.flow.served and run.id not in changing}
        self.compare(stored, served | (changing & ended), set())
        self.end_older(Verdict(cancelled=frozenset(ended)))

    def told_skip_done(self, _made: object, result: Sequence[Any]) -> None:
        for run in result:
            self.controlled.ended_late(run.id, self.at)

    def told_record_breaker_done(self, stored: StoredBreaker, result: None) -> None:
        self.needs.changed(stored)

    def told_record_done(self, run: Any, outcome: Any, result: None) -> None:
        self.judge(run, outcome)
        super().told_record_done(run, outcome, result)

    def told_record_refused(self, run: Any, outcome: Any, result: None) -> None:
        """Hear that the claim was lost: how its attempt has ended says something all the same."""
        if self.simulator.runs[run.claim.run_id].claim == run.claim.token:
            self.judge(run, outcome)

    def judge(self, run: Any, outcome: Any) -> None:
        """Tell what a run needs how an attempt of it has ended."""
        known = self.simulator.runs[run.claim.run_id]
        if self.needs in self.declared_rules[known.flow.number]:
            is_down = outcome.error is not None and outcome.error.type == "ConnectionError"
            said = True if is_down else False if outcome.state is S.SUCCEEDED else None
            self.needs.ended(known, said)

    def told_replay_done(self, event: int, runs: Sequence[Any], result: Any) -> None:
        self.decided(runs, result, self.data[event], accepted=False)

    def decided(
        self,
        runs: Sequence[Any],
        stored: Any,
        data: Mapping[str, str | None],
        *,
        accepted: bool = True,
    ) -> None:
        """Compare what became of new runs, and of older ones by them, with what should have."""
        cancelled: set[str] = set()
        skipped: set[str] = set()
        for run in runs:
            self.named[run.id] = run.flow
            known = self.known(run, data)
            known.accepted, known.replayed = accepted, not accepted
            verdict = self.verdict(known, stored)
            refused = stored.refused.get(run.id)
            reason = None if refused is None else str(refused.reason)
            if reason != verdict.refused:
                self.simulator.faults.append(
                    f"run {run.seq} ({dict(data)}) is refused by {reason}, not {verdict.refused}"
                )
            cancelled |= verdict.cancelled
            skipped |= verdict.skipped
            self.end_older(verdict)
            if verdict.refused is None:
                is_loaded = run.conditions is not None  # else nobody knows of the rule
                if known.replayed and is_loaded:
                    known.got_key = self.controlled.gets_key(known, self.at)
                self.check_class(run, known)
                self.simulator.stored(known, running=run.state is S.RUNNING)
            else:
                known.state, known.accepted = S.SKIPPED, False
                self.simulator.runs[known.id] = known
        self.compare(stored, cancelled, skipped)

    def verdict(self, run: ControlledRun, stored: Any) -> Verdict:
        """Return what should become of a new run; a replay of a flow that is gone has no rules.

        While its flow is being served again, or not any more, a replay has them or not.
        """
        if not run.replayed or (run.flow.served and run.flow.served_at_rest):
            return self.controlled.verdict(run, self.at)
        if run.flow.served == run.flow.served_at_rest:
            return Verdict()
        refused = stored.refused.get(run.id)
        return Verdict(
            refused=None if refused is None else str(refused.reason),
            cancelled=frozenset(each.id for each in stored.cancelled),
            skipped=frozenset(each.id for each in stored.skipped),
        )

    def told_retry_done(self, _run_id: str, _step: None, result: Any) -> None:
        run = self.simulator.runs[result.run.id]
        assert isinstance(run, ControlledRun)
        if run.state in ENDED and run.flow.served and run.flow.served_at_rest:
            # It comes in again, under the mode of its flow; of a flow that is gone, under none.
            verdict = self.controlled.verdict(run, self.at, asked=(Mode,))
            if verdict.refused is not None:
                self.simulator.faults.append(f"run {run.seq} is retried beside another of its key")
            self.compare(result, set(verdict.cancelled), set(verdict.skipped))
        self.end_older(
            Verdict(
                cancelled=frozenset(each.id for each in result.cancelled),
                skipped=frozenset(each.id for each in result.skipped),
            )
        )
        if run.state in ENDED:
            self.comes_in_again(run)
        super().told_retry_done(_run_id, _step, result)

    def comes_in_again(self, run: ControlledRun) -> None:
        """Learn that a run has come in again, in the class of its key.

        While its flow is gone nobody knows its later name, under which the key may be known.
        """
        head = self.head_of(run)
        if head is not None:
            run.level = head.level
            run.is_misplaced |= not (run.flow.served and run.flow.served_at_rest)

    def told_retry_answered(self, _run_id: str, _step: None, result: Any) -> None:
        self.stop_cancelled(result)

    def end_older(self, verdict: Verdict) -> None:
        for each in verdict.cancelled:
            self.simulator.cancelled(each)
        for each in verdict.skipped:
            self.controlled.skipped(each)

    def compare(self, ends: Any, cancelled: set[str], skipped: set[str]) -> None:
        """Compare which older runs were ended with which should have been."""
        ended = ({run.id for run in ends.cancelled}, {run.id for run in ends.skipped})
        if ended != (cancelled, skipped):
            known = [run for run in self.simulator.runs.values() if run.id in cancelled | skipped]
            self.simulator.faults.append(f"{ended} were ended, not {known}")

    def known(self, run: Any, data: Mapping[str, str | None]) -> ControlledRun:
        known = ControlledRun(run.id, run.seq, self.flow_of(run), data, self.at)
        known.level = run.priority or NORMAL
        return known

    def check_class(self, run: Any, known: ControlledRun) -> None:
        """Compare the class of a run that is stored with that which it should have.

        A replay of a flow that is gone has that of its key, or none; without one it is a normal one
        once the flow is served again.
        """
        flow = known.flow
        for each in self.declared_rules[flow.number]:
            if not isinstance(each, Classed) or self.has_misplaced(known):
                continue
            classes: set[int | None] = set()
            if flow.served or flow.served_at_rest:
                classes.add(self.class_of(known, each))
            if known.replayed and not (flow.served and flow.served_at_rest):
                head = self.head_of(known)
                classes |= {None} if head is None else {head.level}
                classes |= {None} if NORMAL in classes else set()
            if run.priority not in classes:
                self.simulator.faults.append(
                    f"run {run.seq} has the class {run.priority}, not {classes}"
                )

    def class_of(self, run: SimulatedRun, classed: Classed) -> int:
        head = self.head_of(run)
        return classed.own(run) if head is None else head.level

    def has_misplaced(self, run: SimulatedRun) -> bool:
        """Whether nobody can say which run of an ordering key is the first."""
        return any(other.is_misplaced for other in self.simulator.same_key(run))

    def head_of(self, run: SimulatedRun) -> ControlledRun | None:
        """Return the first of the unfinished other runs of an ordering key."""
        same = self.simulator.same_key(run) if run.flow.ordered and run.order_key else ()
        unfinished = [
            each for each in same if each.state not in ENDED and isinstance(each, ControlledRun)
        ]
        return min(unfinished, key=lambda each: each.arrival, default=None)

    # ------------------------------------------------------------ more that is done

    @action(number=NUMBERS, steps=STEPS, order=ORDERS)
    def call_off(self, number: int, steps: int, order: int) -> None:
        """Emit an event that cancels runs."""
        self.count += 1
        sent = typed_event(CALLED_OFF, {"work": ("p", "q", None)[number % 3]})
        self.service.emit([sent])
        self.go(steps, order)

    def queueing(self) -> list[int]:
        """Return the flows whose rules are about a queue."""
        return [
            flow.number
            for flow in self.simulator.flows
            if flow.served
            if any(isinstance(each, Bounded | Classed) for each in self.declared_rules[flow.number])
        ]

    @action(lambda self: self.queueing(), number=NUMBERS, steps=STEPS, order=ORDERS)
    def fill(self, number: int, steps: int, order: int) -> None:
        """Send runs of all classes to a flow, and more than its queue takes."""
        flows = self.queueing()
        for _ in range(3):
            self.emit(flows[number % len(flows)], [(0, 0, False), (1, 0, False), (0, 1, False)])
        self.go(steps, order)

    @action(lambda self: self.waiting_attempts(), number=NUMBERS, steps=STEPS, order=ORDERS)
    def lose_connection(self, number: int, steps: int, order: int) -> None:
        """End an attempt as what it needs is down."""
        attempts = self.waiting_attempts()
        attempts[number % len(attempts)].command.set_result(("break", 0))
        self.go(steps, order)

    def go(self, steps: int = 0, order: int = 0) -> None:
        super().go(steps, order)
        if self.service.at_rest and (problem := self.needs.problem()) is not None:
            raise AssertionError(problem)


def about(*kinds: str, policies: Draw = POLICIES, **weights: float) -> type[FlowControlMachine]:
    """Return a machine whose flows all have rules of these kinds, and that does some things more.

    A fault of these rules is found in a few histories.
    """

    class Machine(FlowControlMachine):
        @classmethod
        def beginning(cls) -> Mapping[str, Draw]:
            flows = lists(policies, 1, MOST_FLOWS)
            return {**super().beginning(), "policies": flows, "rules": rules(kinds, 1)}

    Machine.weights = weights
    return Machine
