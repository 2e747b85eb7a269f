"""Slots, keys and isolated runs are counted: nothing overtakes, nothing is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from turnout.service.domain.flow import limit
from turnout.service.flowcontrol.admission import UNWRITTEN, Admission, Block


def admission(concurrency: int = 10, **limits: object) -> Admission:
    made = Admission(concurrency)
    for flow, concurrency_limit in limits.items():
        made.declare(flow, concurrency_limit)  # type: ignore[arg-type]  # keywords are Limits
    return made


def test_a_full_service_admits_nothing_until_a_slot_is_released() -> None:
    slots = admission(1, bill=None)
    assert slots.admit("bill", None, None, 1, False) is None
    assert slots.admit("bill", None, None, 2, False) is Block.SLOT
    slots.release("bill", None, None, isolated=False)
    assert slots.admit("bill", None, None, 2, False) is None


def test_a_flow_limit_leaves_slots_to_other_flows() -> None:
    slots = admission(10, bill=limit(1), load=None)
    assert slots.admit("bill", None, None, 1, False) is None
    assert slots.admit("bill", None, None, 2, False) is Block.FLOW
    assert slots.admit("load", None, None, 3, False) is None


def test_a_key_limit_counts_each_key_apart() -> None:
    slots = admission(10, bill=limit(1, per=lambda event: event.id))
    assert slots.admit("bill", None, "a", 1, False) is None
    assert slots.admit("bill", None, "a", 2, False) is Block.LIMIT
    assert slots.admit("bill", None, "b", 3, False) is None


def test_a_blocked_run_keeps_its_ordering_key_so_that_nothing_overtakes() -> None:
    slots = admission(1, bill=None)
    assert slots.admit("bill", "x", None, 1, False) is None
    slots.release("bill", "x", None, isolated=False, keep_order_for=1)  # retrying
    assert slots.admit("bill", "x", None, 2, False) is Block.ORDER
    assert slots.admit("bill", "x", None, 1, False) is None
    slots.release("bill", "x", None, isolated=False)
    assert slots.admit("bill", "y", None, 5, False) is None
    assert slots.admit("bill", "x", None, 6, False) is Block.SLOT
    slots.release("bill", "y", None, isolated=False)
    assert slots.admit("bill", "x", None, 7, False) is Block.ORDER  # 6 was first
    assert slots.admit("bill", "x", None, 6, False) is None


def test_an_unwritten_run_never_shares_a_key_and_holds_none_without_a_slot() -> None:
    slots = admission(2, bill=None)
    assert slots.admit("bill", "x", None, UNWRITTEN, False) is None
    assert slots.admit("bill", "x", None, UNWRITTEN, False) is Block.ORDER
    assert slots.admit("bill", "y", None, UNWRITTEN, False) is None
    assert slots.admit("bill", "z", None, UNWRITTEN, False) is Block.SLOT
    slots.release("bill", "y", None, isolated=False)
    assert slots.admit("bill", "z", None, 5, False) is None


def test_isolated_runs_run_one_at_a_time_over_all_flows() -> None:
    slots = admission(10, bill=None, load=None)
    assert slots.admit("bill", None, None, 1, True) is None
    assert slots.admit("load", None, None, 2, True) is Block.ISOLATED
    assert slots.admit("load", None, None, 3, False) is None
    slots.release("bill", None, None, isolated=True)
    assert slots.admit("load", None, None, 2, True) is None


def test_a_cancelled_waiting_run_releases_its_key_only_if_it_holds_it() -> None:
    slots = admission(10, bill=None)
    slots.hold_key("bill", "x", 7)
    assert not slots.release_key("bill", "x", 8)
    assert slots.release_key("bill", "x", 7)
    assert slots.admit("bill", "x", None, 9, False) is None


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.booleans())))
def test_bounds_hold_and_slots_are_released_in_any_order(
    steps: list[tuple[str, str, bool]],
) -> None:
    slots = admission(3, a=limit(2), b=limit(1, per=lambda event: event.id))
    running: list[tuple[str, str, str]] = []
    for seq, (flow, key, finish) in enumerate(steps, 1):
        if finish and running:
            flow, order_key, limit_key = running.pop(0)
            slots.release(flow, order_key, limit_key, isolated=False)
        elif slots.admit(flow, f"{key}{seq}", key, seq, False) is None:
            running.append((flow, f"{key}{seq}", key))
        assert len(running) == 3 - slots.free
        assert sum(flow == "a" for flow, _, _ in running) <= 2
        for name in "xyz":
            assert sum(flow == "b" and key == name for flow, _, key in running) <= 1
    for flow, order_key, limit_key in running:
        slots.release(flow, order_key, limit_key, isolated=False)
    assert slots.free == 3
