"""Random histories of a service, against a simulator that knows only what dispatch promises.

The journal and the dispatcher are real; time, the answers of the journal and the ends of attempts
come one step at a time (`stepped_service`), so a history has the same effect each time and shrinks.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.support.dispatch_simulator import (
    ENDED,
    DispatchSimulator,
    SimulatedFlow,
    SimulatedLimit,
    SimulatedRun,
)
from tests.support.histories import (
    MEMORY,
    Draw,
    Machine,
    action,
    booleans,
    integers,
    lists,
    one_of,
    tuples,
    zero_or,
)
from tests.support.inside import scheduler
from tests.support.random_service import shrink_bounds
from tests.support.running import make_event
from tests.support.stepped_service import START, SteppedService
from turnout import flow, limit, retry
from turnout.service.app.reload import reload_project
from turnout.service.domain.event import Event
from turnout.service.domain.run import RunState
from turnout.service.flowcontrol.limit import FlowLimit, HeldLimit, KeyLimit
from turnout.service.flowcontrol.named_limit import NamedLimit
from turnout.service.journal.records import StoredOverride, StoredPause
from turnout.service.operate.verbs import (
    Cancel,
    Drop,
    Pause,
    ReplayDead,
    ResetLimit,
    Resume,
    Retry,
    SetLimit,
)
from turnout.service.project import AnyFlow, Project

S = RunState
A_MOMENT = timedelta(seconds=0.1)
MAX_DEATHS = 4  # with one more, a run would fail
POLICY = retry(10_000, delay="1s", factor=1, jitter=False)

KINDS = {"flow": "", "key": "limit", "account": "account", "named": ""}
"""The kinds of limits, and by which part of the event they count."""

MOST_LIMITS = 2
MOST_FLOWS = 3

LIMITS = (FlowLimit, KeyLimit, HeldLimit, NamedLimit)

# What is drawn never depends on what happened: numbers are taken modulo what there is.
NUMBERS = integers(0, 99)
KEYS = integers(0, 2)
STEPS = zero_or(6)
ORDERS = zero_or(10**6)
SECONDS = one_of(1, 5, 30, 90)
DRAWN_LIMITS = tuples(one_of(*sorted(KINDS)), integers(1, 2))
Policy: TypeAlias = tuple[bool, list[tuple[str, int]], bool]
"""Whether a flow is ordered, its limits (kind, count), and whether a dead letter blocks its key."""

POLICIES = tuples(booleans(), lists(DRAWN_LIMITS, 0, MOST_LIMITS), booleans())


class DispatchMachine(Machine):
    """What is done to a service, and the simulator that is told of it."""

    max_starts = 2  # a start takes as long as everything else in a history

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY))
        self.patch = pytest.MonkeyPatch()
        self.names: list[str] = []
        self.was: dict[int, str] = {}
        self.numbers: dict[str, int] = {}
        self.named: dict[str, str] = {}  # the name of its flow that each run has
        self.sent: list[Event] = []
        self.data: dict[int, Mapping[str, str | None]] = {}  # of each event that is stored
        self.paused: set[str] = set()  # on disk: what a process that starts reads
        self.overridden: dict[str, SimulatedLimit] = {}  # by the names that operators say
        self.count = self.starts = 0
        self.at = START
        self.service: SteppedService
        self.simulator: DispatchSimulator

    # ------------------------------------------------------------ the service

    @classmethod
    def beginning(cls) -> Mapping[str, Draw]:
        return {
            "slots": integers(1, 4),
            "policies": lists(POLICIES, 1, MOST_FLOWS),
            "bounds": integers(0, 5),
        }

    def begin(self, slots: int, policies: list[Policy], bounds: int) -> None:
        if bounds:
            shrink_bounds(self.patch, random.Random(bounds))
        self.service = service = SteppedService(self.folder / "data", slots, self)
        named = SimulatedLimit(policies[0][1][0][1] if policies[0][1] else 1, name="db")
        flows = [
            SimulatedFlow(number, ordered, self.limits(drawn, named), blocks)
            for number, (ordered, drawn, blocks) in enumerate(policies)
        ]
        self.simulator = self.simulate(slots, flows)
        self.names = [f"flow{number}" for number in range(len(flows))]
        self.numbers = {name: number for number, name in enumerate(self.names)}
        service.start(self.declared())
        self.check()

    def simulate(self, slots: int, flows: list[SimulatedFlow]) -> DispatchSimulator:
        return DispatchSimulator(slots, flows, lambda: self.service.now)

    def declared(self, renamed: int | None = None) -> list[AnyFlow]:
        """Return the flows as they are declared now, one of them under a new name."""
        flows = []
        for each in self.simulator.flows:
            if each.number == renamed:
                self.was[each.number] = self.names[each.number]
                self.count += 1
                name = self.names[each.number] = f"flow{each.number}_{self.count}"
                self.numbers[name] = each.number
            if each.served:
                flows.append(self.declare(each))
        return flows

    def declare(self, each: SimulatedFlow) -> AnyFlow:
        service = self.service

        @flow(
            name=self.names[each.number],
            was=self.was.get(each.number),
            concurrency=self.declared_limits(each),
            ordered_by=(lambda event: event.data["order"]) if each.ordered else None,
            on_dead="block" if each.blocks else "continue",
            retry=POLICY,
            **self.options(each),
        )
        async def works(event: Event) -> None:
            await service.attempt(event)

        return works

    @staticmethod
    def limits(drawn: list[tuple[str, int]], named: SimulatedLimit) -> list[SimulatedLimit]:
        """Return the limits of a flow: at most one of each kind."""
        made: dict[str, SimulatedLimit] = {}
        for kind, count in drawn:
            own = SimulatedLimit(count, KINDS[kind], holds=kind == "account")
            made[kind] = named if kind == "named" else own
        return list(made.values())

    def options(self, each: SimulatedFlow) -> dict[str, Any]:
        """Return more that a flow declares."""
        return {}

    def declared_limits(self, flow: SimulatedFlow) -> Any:
        return [self.declare_limit(each) for each in flow.limits]

    @staticmethod
    def declare_limit(each: SimulatedLimit) -> Any:
        if each.name:
            return limit(each.name, each.count)
        per = (lambda event: event.data[each.per]) if each.per else None
        return limit(each.count, per=per, hold="run" if each.holds else "attempt")

    # ------------------------------------------------------------ what the simulator is told

    def told(self, what: str, call: Any) -> None:
        """Hear of a call of the journal, when it is asked and when it has taken effect.

        `at` is the instant by which the service decided what it asks for.
        """
        self.at = call.options.get("now", self.service.now)
        hears = getattr(self, f"told_{call.name}_{what}", None)
        if hears is not None:
            is_done = call.outcome is not None and what != "refused"
            hears(*call.arguments, result=call.outcome.result() if is_done else None)

    def told_append_asked(self, entries: Sequence[Any], result: None) -> None:
        for entry in entries:
            for run in entry.runs:
                if run.state is S.RUNNING:
                    self.simulator.chosen(self.flow_of(run))

    def told_append_done(self, entries: Sequence[Any], result: Sequence[Any]) -> None:
        for entry, stored in zip(entries, result, strict=True):
            if not (stored.duplicate or stored.conflict):
                self.data[stored.event_seq] = entry.event.data
                self.told_replay_done(stored.event_seq, entry.runs, result)

    def told_replay_done(self, event: int, runs: Sequence[Any], result: object) -> None:
        for run in runs:
            self.named[run.id] = run.flow
            known = self.known(run, self.data[event])
            self.simulator.stored(known, running=run.state is S.RUNNING)

    def known(self, run: Any, data: Mapping[str, str | None]) -> SimulatedRun:
        return SimulatedRun(run.id, run.seq, self.flow_of(run), data, self.at)

    def told_claim_asked(self, seqs: Sequence[int], result: None) -> None:
        runs = {run.seq: run for run in self.simulator.runs.values()}
        self.simulator.claiming([runs[seq] for seq in seqs])

    def told_claim_done(self, _seqs: Sequence[int], result: Sequence[Any]) -> None:
        self.simulator.claimed([run.claim.run_id for run in result])

    def told_record_done(self, run: Any, outcome: Any, result: None) -> None:
        due_at = self.at if outcome.state is S.QUEUED else outcome.due_at
        self.simulator.recorded(run.claim.run_id, outcome.state, due_at)

    def told_cancel_done(self, _run_id: str, result: Sequence[Any]) -> None:
        for run in result:
            self.simulator.cancelled(run.id)

    def told_cancel_answered(self, _run_id: str, result: Sequence[Any]) -> None:
        for run in result:
            self.simulator.cancel_answered(run.id)

    def told_retry_done(self, _run_id: str, _step: None, result: Any) -> None:
        run = result.run
        self.simulator.retried(run.id, self.at)
        if run.flow != self.named[run.id]:  # it is called what its flow is called now
            self.told_rename_flows_done({self.named[run.id]: run.flow}, 1)

    def told_drop_done(self, _run_id: str, result: Any) -> None:
        self.simulator.dropped(result.id)

    def told_rename_flows_done(self, renamed: Mapping[str, str], result: int) -> None:
        for was, name in renamed.items():
            self.renamed(was, name)

    def renamed(self, was: str, name: str) -> None:
        for run in self.simulator.runs.values():
            if self.named[run.id] == was and (run.state not in ENDED or run.dead):
                self.named[run.id] = name
        before = f"flow:{was}/"  # what is set of its limits goes along, and so does its pause
        for full in [each for each in self.overridden if each.startswith(before)]:
            self.overridden[f"flow:{name}/{full[len(before) :]}"] = self.overridden.pop(full)
        if f"flow:{was}" in self.paused:
            self.paused = self.paused - {f"flow:{was}"} | {f"flow:{name}"}
            self.simulator.flows[self.numbers[name]].paused = True

    def told_pause_done(self, pause: StoredPause, result: None) -> None:
        self.paused.add(pause.name)

    def told_resume_done(self, name: str, result: None) -> None:
        self.paused.discard(name)
        for each in self.simulator.flows:  # what is written may be known before it is answered
            each.paused = each.paused and name != f"flow:{self.names[each.number]}"

    def told_override_done(self, made: StoredOverride, result: None) -> None:
        self.overridden[made.name].overridden = made.count

    def told_reset_limit_done(self, name: str, result: None) -> None:
        self.overridden[name].overridden = None

    def told_end_overrides_done(self, result: Sequence[StoredOverride]) -> None:
        for made in result:
            self.overridden[made.name].overridden = None

    def told_rescue_done(self, result: object) -> None:
        self.simulator.rescued(self.at)

    def code_began(self, run_id: str) -> int:
        """Hear that the code of an attempt begins."""
        return self.simulator.code_began(run_id)

    def code_ended(self, run_id: str, mark: int) -> None:
        """Hear that the code of an attempt has ended."""
        self.simulator.code_ended(run_id, mark)

    def flow_of(self, run: Any) -> SimulatedFlow:
        return self.simulator.flows[self.numbers[run.flow]]

    # ------------------------------------------------------------ steps and checks

    def go(self, steps: int = 0, order: int = 0) -> None:
        """Go on for so many steps, or with 0 to rest, where nothing that may start is left."""
        self.service.go(steps or None, order)
        if self.service.at_rest:
            self.simulator.settle()
            if self.has_unread_due():
                self.service.advance(A_MOMENT)  # what was due in the past is looked at again
                self.service.go()
            self.simulator.rest(self.held(), self.holders, self.used)
        self.check()

    def has_unread_due(self) -> bool:
        """Whether a due run should start, or could but for a slot, that has not been read."""
        known = self.service.process.dispatcher.known_due
        due = [run for run in self.simulator.live if run.is_due]
        free = [run for run in due if not self.simulator.why_not(run) - {"slots", "flow"}]
        missed = any(run.is_due for run in self.simulator.missed())
        return missed or any(run.seq not in known for run in free)

    def check(self) -> None:
        if self.simulator.faults:
            raise AssertionError("; ".join(self.simulator.faults))

    def held(self) -> dict[int, int]:
        held: Counter[int] = Counter()
        for name, count in self.service.process.dispatcher.held_slots().items():
            held[self.numbers[name]] += count
        return dict(held)

    def used(self, each: SimulatedFlow) -> list[Mapping[str | None, int]]:
        """Return the slots in use at each limit of a flow, by key, as its gates count them."""
        queue = scheduler(self.service.process).queue(self.names[each.number])
        limits: list[Any] = [gate for gate in queue.gates.declared if type(gate) in LIMITS]
        return [gate.used() for gate in limits]

    def holders(self, run: SimulatedRun) -> Collection[str]:
        assert run.order_key is not None
        return self.service.process.dispatcher.holders(self.names[run.flow.number], run.order_key)

    # ------------------------------------------------------------ senders and flows

    @action(
        number=NUMBERS,
        keys=lists(tuples(KEYS, KEYS, booleans()), 1, 3),
        again=booleans(),
        steps=STEPS,
        order=ORDERS,
    )
    def send(
        self,
        number: int,
        keys: list[tuple[int, int, bool]],
        again: bool,
        steps: int,
        order: int,
    ) -> None:
        """Emit events to a flow, and one that was sent before."""
        self.emit(number % len(self.names), keys, again=again)
        self.go(steps, order)

    def emit(self, number: int, keys: list[tuple[int, int, bool]], *, again: bool = False) -> None:
        events = []
        for order_key, limit_key, lingers in keys:
            self.count += 1
            data = {
                "order": ("a", "b", None)[order_key],
                "limit": ("x", "y", None)[limit_key],
                "account": "mn"[(order_key + limit_key) % 2],
                "work": ("p", "q", None)[(order_key + 2 * limit_key) % 3],
                "class": ("low", "high", "normal")[(2 * order_key + limit_key) % 3],
                "lingers": lingers,
            }
            events.append(make_event(data, f"event-{self.count}"))
        if again:
            events.append((self.sent or events)[-1])
        self.sent += events[: len(keys)]
        self.service.send(self.names[number], events)

    def waiting_attempts(self) -> list[Any]:
        return [
            attempt
            for attempt in self.service.attempts
            if not attempt.command.done() and attempt.let_go is None
        ]

    @action(
        possible=lambda self: self.waiting_attempts(),
        number=NUMBERS,
        how=one_of("succeed", "fail", "retry", "sleep", "skip"),
        seconds=SECONDS,
        steps=STEPS,
        order=ORDERS,
    )
    def end(self, number: int, how: str, seconds: int, steps: int, order: int) -> None:
        """End an attempt."""
        attempts = self.waiting_attempts()
        attempts[number % len(attempts)].command.set_result((how, seconds))
        self.go(steps, order)

    def lingering(self) -> list[Any]:
        return [
            attempt.let_go
            for attempt in self.service.attempts
            if attempt.let_go is not None and not attempt.let_go.done()
        ]

    @action(lambda self: self.lingering(), number=NUMBERS, steps=STEPS, order=ORDERS)
    def let_go(self, number: int, steps: int, order: int) -> None:
        """End the code of an attempt that was cancelled."""
        lingering = self.lingering()
        lingering[number % len(lingering)].set_result(None)
        self.go(steps, order)

    @action(seconds=SECONDS, steps=STEPS, order=ORDERS)
    def advance(self, seconds: int, steps: int, order: int) -> None:
        """Let time pass."""
        self.service.advance(timedelta(seconds=seconds))
        self.go(steps, order)

    # ------------------------------------------------------------ operators

    def some_run(self, number: int, which: Callable[[SimulatedRun], bool]) -> str | None:
        found = [run.id for run in self.simulator.runs.values() if which(run)]
        return found[number % len(found)] if found else None

    @action(number=NUMBERS, steps=STEPS, order=ORDERS)
    def cancel(self, number: int, steps: int, order: int) -> None:
        run_id = self.some_run(number, lambda run: run.state not in ENDED)
        if run_id is not None:
            self.service.operate(Cancel(run_id))
            self.go(steps, order)

    @action(number=NUMBERS, steps=STEPS, order=ORDERS)
    def retry(self, number: int, steps: int, order: int) -> None:
        may = {*ENDED, S.RETRYING}
        run_id = self.some_run(number, lambda run: run.state in may and self.has_flow(run))
        if run_id is not None:
            self.service.operate(Retry(run_id))
            self.go(steps, order)

    def has_flow(self, run: SimulatedRun) -> bool:
        """Whether a flow says that it is, or was, called what the run's flow is called."""
        number = run.flow.number
        return self.named[run.id] in (self.names[number], self.was.get(number))

    @action(number=NUMBERS, steps=STEPS, order=ORDERS)
    def drop(self, number: int, steps: int, order: int) -> None:
        run_id = self.some_run(number, lambda run: run.dead)
        if run_id is not None:
            self.service.operate(Drop(run_id))
            self.go(steps, order)

    @action(number=NUMBERS, steps=STEPS, order=ORDERS)
    def replay(self, number: int, steps: int, order: int) -> None:
        run_id = self.some_run(number, lambda run: run.dead)
        if run_id is not None:
            self.service.operate(ReplayDead(run_id))
            self.go(steps, order)

    @action(number=NUMBERS, pauses=booleans(), steps=STEPS, order=ORDERS)
    def pause(self, number: int, pauses: bool, steps: int, order: int) -> None:
        """Pause or resume a flow."""
        self.set_paused(self.simulator.flows[number % len(self.names)], pauses)
        self.go(steps, order)

    def set_paused(self, each: SimulatedFlow, paused: bool) -> None:
        verb = (Pause if paused else Resume)(self.names[each.number])

        def answered() -> None:
            each.paused = f"flow:{self.names[each.number]}" in self.paused

        self.service.operate(verb, answered if paused else None)

    @action(
        number=NUMBERS,
        change=one_of("count", "rename", "serve"),
        steps=STEPS,
        order=ORDERS,
    )
    def reload(self, number: int, change: str, steps: int, order: int) -> None:
        """Change a limit or a name, or whether a flow is served; one reload at a time."""
        self.go()
        each, renamed = self.simulator.flows[number % len(self.names)], None
        if change == "count":
            for changed in each.limits[:1]:
                changed.count = 3 - changed.count
        elif change == "serve":
            each.served = not each.served
        elif each.served:
            renamed = each.number
        self.change(renamed)
        self.go(steps, order)

    def override(self, number: int, count: int, seconds: int, steps: int, order: int) -> None:
        """Set a limit for a while; a count of 0 lets what is declared hold again."""
        self.go()
        names = self.limit_names()
        if names:
            full = list(names)[number % len(names)]
            self.overridden[full] = names[full]
            lasts = timedelta(seconds=seconds)
            self.service.operate(SetLimit(full, count, lasts) if count else ResetLimit(full))
            self.go(steps, order)

    def limit_names(self) -> dict[str, SimulatedLimit]:
        """Return the limits that operators can set."""
        found: dict[str, SimulatedLimit] = {}
        for each in (each for each in self.simulator.flows if each.served):
            for position, rule in enumerate(each.limits, 1):
                place = "limit" if position == 1 else f"limit.{position}"
                own = f"flow:{self.names[each.number]}/{place}"
                found[f"limit:{rule.name}" if rule.name else own] = rule
        return found

    def change(self, renamed: int | None = None) -> None:
        project = Project.of(self.declared(renamed))
        self.service.do(partial(reload_project, self.service.process, project))

    @action(lambda self: self.may_die())
    def crash(self) -> None:
        """Kill the process, whatever it is at, and start another."""
        self.service.cut()
        self.start()

    def may_die(self) -> bool:
        deaths = [run.deaths for run in self.simulator.runs.values()]
        return self.starts < self.max_starts and all(count < MAX_DEATHS for count in deaths)

    @action(lambda self: self.may_die(), order=ORDERS)
    def stop(self, order: int) -> None:
        """Stop the process, and start another."""
        self.service.stop(order)
        self.start()

    def start(self) -> None:
        self.starts += 1
        self.simulator.ended_process()
        for each in self.simulator.flows:  # an answer may have been cut off
            each.paused = f"flow:{self.names[each.number]}" in self.paused
        self.service.start(self.declared())
        self.go()

    # ------------------------------------------------------------ the end

    def clear(self) -> None:
        """End the service and remove its folder."""
        self.patch.undo()
        if hasattr(self, "service"):
            self.service.close()
        shutil.rmtree(self.folder)

    def finish(self) -> None:
        """Let every run end; then as many start at once as each limit allows, and all ends."""
        self.go()
        for each in self.simulator.flows:
            each.served = True
        self.change()
        self.go()
        for each in self.simulator.flows:
            self.set_paused(each, False)
        self.go()
        self.all_end()
        for each in self.simulator.flows:
            for key in range(2):
                self.emit(each.number, [(2, key, False)] * 2)
        self.all_end()
        assert not self.simulator.used()

    def all_end(self) -> None:
        for _ in range(1000):
            if not self.simulator.live:
                return
            before = [run.state for run in self.simulator.runs.values()]
            for let_go in self.lingering():
                let_go.set_result(None)
            for attempt in self.waiting_attempts():
                attempt.command.set_result(("succeed", 0))
            for run in self.simulator.runs.values():
                if run.dead:
                    self.service.operate(Drop(run.id))
            self.go()
            if before == [run.state for run in self.simulator.runs.values()]:
                self.service.advance(timedelta(seconds=90))
                self.go()
        raise AssertionError("the runs do not end")
