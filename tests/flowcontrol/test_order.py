"""An ordering key belongs to its holders until each of them lets go."""

from __future__ import annotations

from tests.support.gates import NOW, Asking, gates, refused_by
from turnout.service.flowcontrol.admission import Admission
from turnout.service.flowcontrol.order import Order


def test_a_refused_run_holds_its_key_so_that_nothing_overtakes() -> None:
    flow = gates(Admission(1))
    first, other = Asking("1", "x"), Asking("5", "y")
    assert refused_by(flow, first) is None
    flow.leave(first, keeps_key=True)  # it is retried later
    assert refused_by(flow, Asking("2", "x")) == "order"
    assert refused_by(flow, first) is None
    flow.leave(first, keeps_key=False)
    assert refused_by(flow, other) is None
    waiting = Asking("6", "x")
    assert refused_by(flow, waiting) == "slot"
    flow.leave(other, keeps_key=False)
    assert refused_by(flow, Asking("7", "x")) == "order"
    assert refused_by(flow, waiting) is None


def test_a_run_not_yet_written_takes_a_key_only_together_with_a_slot() -> None:
    flow = gates(Admission(1))
    first = Asking("1", "x")
    assert flow.admit(first, NOW) is None
    assert flow.admit(Asking("2", "x"), NOW) is not None
    assert flow.admit(Asking("3", "z"), NOW) is not None
    flow.leave(first, keeps_key=False)
    assert refused_by(flow, Asking("5", "z")) is None, "nobody held the key"


def test_a_run_retried_while_its_cancelled_attempt_still_runs_is_not_admitted_twice() -> None:
    flow = gates()
    attempt, again = Asking("1", "x"), Asking("1", "x")
    assert refused_by(flow, attempt) is None
    assert refused_by(flow, again) == "order"
    assert not flow.order.let_go("x", "1"), "letting go never frees a running holder"
    flow.leave(attempt, keeps_key=False)
    assert refused_by(flow, again) is None


def test_an_attempt_that_ends_late_does_not_release_the_key_of_a_later_attempt() -> None:
    order = Order()
    late, now = Asking("1", "x", token=1), Asking("1", "x", token=2)
    order.enter(late, NOW)
    order.enter(now, NOW)
    order.leave(late)
    order.suspend(late)
    assert order.check(Asking("2", "x"), NOW) == "behind"
    order.leave(now)
    assert order.check(Asking("2", "x"), NOW) is None


def test_a_rename_keeps_all_holders_of_a_key() -> None:
    old, new = Order(), Order()
    running, waiting = Asking("1", "x", token=1), Asking("2", "x")
    old.enter(running, NOW)
    new.add_holder("x", "2")
    new.take_over(old)
    assert set(new.holders("x")) == {"1", "2"}
    assert new.check(waiting, NOW) == "behind", "another holder is running"
    new.leave(running)
    assert new.check(Asking("3", "x"), NOW) == "behind", "a holder is left"
    assert new.check(waiting, NOW) is None
    assert new.let_go("x", "2")
    assert not new.held()


def test_a_cancelled_waiting_run_releases_its_key_only_if_it_holds_it() -> None:
    order = Order()
    order.add_holder("x", "7")
    assert not order.let_go("x", "8")
    assert not order.let_go("y", "7")
    assert order.let_go("x", "7")
    assert order.check(Asking("9", "x"), NOW) is None
