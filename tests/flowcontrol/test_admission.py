"""A run enters every gate or none, and leaves what it entered: limits hold, nothing leaks."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from copy import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.gates import NOW, Asking, declare, gates, refused_by
from tests.support.inside import gates_of
from turnout import dependency, throttle
from turnout.service.domain.flow import Flow
from turnout.service.flowcontrol.admission import Admission, FlowGates
from turnout.service.flowcontrol.limit import limit


def test_a_full_service_admits_nothing_until_a_run_leaves() -> None:
    flow = gates(Admission(1))
    first = Asking("1")
    assert refused_by(flow, first) is None
    assert refused_by(flow, Asking("2")) == "slot"
    flow.leave(first, keeps_key=False)
    assert refused_by(flow, Asking("2")) is None


def test_an_isolated_run_keeps_its_slot_from_others_while_it_waits_to_run_alone() -> None:
    admission = Admission(10)
    flow = gates(admission, concurrency=limit(1, per=lambda event: event.id, hold="run"))
    alone, keys = Asking("0", isolated=True, keys={"limit": "b"}), {"limit": "a"}
    assert refused_by(flow, alone) is None
    isolated = Asking("1", isolated=True, keys=keys)
    assert refused_by(flow, isolated) == "isolation"
    assert refused_by(flow, Asking("2", keys=keys)) == "limit"
    flow.leave(alone, keeps_key=False)
    assert refused_by(flow, isolated) is None
    flow.leave(isolated, keeps_key=False)
    taken = Asking("2", keys=keys)
    assert refused_by(flow, taken) is None
    assert refused_by(flow, Asking("3", isolated=True, keys=keys)) == "limit"
    flow.leave(taken, keeps_key=False)


def test_a_flow_limit_leaves_slots_to_other_flows() -> None:
    admission = Admission(10)
    bill, load = gates(admission, concurrency=limit(1)), gates(admission)
    assert refused_by(bill, Asking("1")) is None
    assert refused_by(bill, Asking("2")) == "flow"
    assert refused_by(load, Asking("3")) is None
    assert (bill.free_slots(), load.free_slots()) == (0, 8)


def test_a_key_limit_counts_each_key_apart_and_no_key_waits_for_nobody() -> None:
    flow = gates(concurrency=limit(1, per=lambda event: event.id))
    assert refused_by(flow, Asking("1", keys={"limit": "a"})) is None
    assert refused_by(flow, Asking("2", keys={"limit": "a"})) == "limit"
    assert refused_by(flow, Asking("3", keys={"limit": "b"})) is None
    for number in "456":
        assert refused_by(flow, Asking(number)) is None
    assert refused_by(flow, Asking("7", keys={"limit": ""})) is None, "no key is not the empty key"


def test_isolated_runs_run_one_at_a_time_over_all_flows() -> None:
    admission = Admission(10)
    bill, load = gates(admission), gates(admission)
    first = Asking("1", isolated=True)
    assert refused_by(bill, first) is None
    assert refused_by(load, Asking("2", isolated=True)) == "isolation"
    assert refused_by(load, Asking("3")) is None
    bill.leave(first, keeps_key=False)
    assert refused_by(load, Asking("2", isolated=True)) is None


def test_a_refused_run_enters_no_gate() -> None:
    admission = Admission(10)
    flow = gates(admission, concurrency=limit(1, per=lambda event: event.id))
    assert refused_by(flow, Asking("1", keys={"limit": "a"})) is None
    assert refused_by(flow, Asking("2", "x", {"limit": "a"})) == "limit"
    assert admission.slots.free == 9
    assert len(flow.inside) == 1


EVERY_RULE: dict[str, Any] = {
    "key": lambda event: event.id,
    "mode": "latest",
    "ordered_by": lambda event: event.id,
    "needs": dependency("crm"),
    "concurrency": [5, limit(2, per=lambda event: event.id, hold="run"), limit("db", 3)],
    "rate": [throttle("calls", "9/m"), throttle("9/m", per=lambda event: event.id)],
}
KEYS = {"mode": "a", "limit.2": "a", "throttle": "a"}


def state(thing: Any) -> Any:
    """Return everything that a gate counts and holds, to compare it."""
    if isinstance(thing, Mapping):
        return {key: state(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple, set, deque)):
        return [state(each) for each in thing]
    if type(thing).__module__.startswith("turnout") and hasattr(thing, "__dict__"):
        return state({**vars(thing)})
    return thing


@pytest.mark.parametrize("which", range(8))
def test_a_run_that_a_later_gate_refuses_leaves_the_earlier_ones_as_they_were(
    monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """Each gate in turn is the one that refuses; only the ordering key is held from then on."""
    flow = gates(**EVERY_RULE)
    every = list(gates_of(flow))
    assert len(every) == 8, "one for each rule, and the slots"
    monkeypatch.setattr(every[which], "check", lambda run, now: "behind")
    before = [state(copy(gate)) for gate in every]
    run = Asking("1", "x", KEYS)
    refusal = flow.ask(run, NOW)
    assert refusal is not None and refusal.gate is every[which]
    assert [state(copy(gate)) for gate in every] == before
    assert (flow.inside, run.token, run.starts) == ({}, 0, ())
    assert list(flow.order.holders("x")) == ["1"], "nothing newer of its key overtakes it"


def test_the_comparison_sees_what_each_gate_counts() -> None:
    flow = gates(**EVERY_RULE)
    before = [state(copy(gate)) for gate in gates_of(flow)]
    assert refused_by(flow, Asking("1", "x", KEYS)) is None
    after = [state(copy(gate)) for gate in gates_of(flow)]
    unchanged = [
        gate.name
        for gate, old, new in zip(gates_of(flow), before, after, strict=True)
        if old == new
    ]
    assert unchanged == []


def test_a_limit_declared_by_a_reload_counts_what_runs_already() -> None:
    flow = gates()
    running = [Asking(str(number)) for number in range(3)]
    assert [refused_by(flow, run) for run in running] == [None] * 3
    flow.declare(declare(concurrency=limit(3)), NOW)
    assert refused_by(flow, Asking("4")) == "flow"
    flow.declare(declare(concurrency=limit(4)), NOW)
    assert refused_by(flow, Asking("4")) is None
    for run in running:
        flow.leave(run, keeps_key=False)
    assert flow.free_slots() == 3


def test_an_old_name_s_runs_count_for_the_new_name() -> None:
    admission = Admission(10)
    old, new = gates(admission), gates(admission, concurrency=limit(2))
    run = Asking("1", "x")
    assert refused_by(old, run) is None
    new.take_over(old, NOW)
    assert refused_by(new, Asking("2", "x")) == "order"
    assert refused_by(new, Asking("3")) is None
    assert refused_by(new, Asking("4")) == "flow"
    new.leave(run, keeps_key=False)
    assert refused_by(new, Asking("2", "x")) is None


POLICIES: dict[str, Flow[..., object]] = {
    "a": declare("a", concurrency=limit(2)),
    "b": declare("b", concurrency=limit(1, per=lambda event: event.id)),
}


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.booleans())))
def test_limits_hold_and_runs_leave_in_any_order(steps: list[tuple[str, str, bool]]) -> None:
    admission = Admission(3)
    flows = {name: FlowGates(admission) for name in POLICIES}
    for name, declared in POLICIES.items():
        flows[name].declare(declared, NOW)
    running: list[Asking] = []
    for number, (name, key, finish) in enumerate(steps):
        run = Asking(str(number), f"{key}{number}", {"limit": key}, flow=name)
        if finish and running:
            ended = running.pop(0)
            flows[ended.flow].leave(ended, keeps_key=False)
        elif flows[name].admit(run, NOW) is None:
            running.append(run)
        assert len(running) == 3 - admission.slots.free
        assert sum(run.flow == "a" for run in running) <= 2
        for each in "xyz":
            assert sum(run.flow == "b" and run.keys == {"limit": each} for run in running) <= 1
    for run in running:
        flows[run.flow].leave(run, keeps_key=False)
    assert admission.slots.free == 3
    assert not any(gates.inside or gates.order.held() for gates in flows.values())
