"""Every flow's answer to an event is a run, a dead letter or a decision with its reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from tests.running import make_event
from turnout import flow, limit
from turnout.service.event import MAX_HOPS, Event
from turnout.service.router import route
from turnout.service.run import RunState


class Order(BaseModel):
    id: str
    amount: float


@flow
async def bill(order: Order) -> None: ...


@flow(when=lambda event: event.data["amount"] > 0)
async def paid(event: Event) -> None: ...


@flow(
    ordered_by=lambda event: event.data["id"],
    concurrency=limit(2, per=lambda event: event.data["amount"]),
)
async def keyed(event: Event) -> None: ...


def test_a_matching_flow_gets_a_queued_run_with_its_arguments_and_keys() -> None:
    routed = route(make_event({"id": "a", "amount": 5}), [bill, keyed])
    assert [run.flow for run in routed.entry.runs] == ["bill", "keyed"]
    assert {run.state for run in routed.entry.runs} == {RunState.QUEUED}
    assert routed.arguments[0] == {"order": Order(id="a", amount=5)}
    assert (routed.entry.runs[1].order_key, routed.entry.runs[1].limit_key) == ("a", "5")


def test_a_filter_that_says_no_is_a_decision_naming_it() -> None:
    routed = route(make_event({"amount": 0}), [paid])
    assert not routed.entry.runs
    decision = routed.entry.decisions[0]
    assert (decision.flow, decision.verdict) == ("paid", "filtered")
    assert "test_router.py:" in decision.detail


def test_a_filter_that_raises_is_a_dead_letter() -> None:
    routed = route(make_event({}), [paid])
    (run,) = routed.entry.runs
    assert run.state is RunState.FAILED
    assert run.error is not None
    assert run.error.type == "filter_error"
    assert "KeyError: 'amount'" in run.error.message
    assert not routed.refused_by_all  # a bug of ours is not the sender's


def test_data_a_flow_cannot_take_is_a_dead_letter_naming_the_field() -> None:
    routed = route(make_event({"id": "a", "amount": "much"}), [bill, keyed])
    assert [run.state for run in routed.entry.runs] == [RunState.FAILED, RunState.QUEUED]
    assert "amount" in routed.refusals["bill"]
    assert not routed.refused_by_all
    assert route(make_event({"id": "a"}), [bill]).refused_by_all


def test_broken_bytes_are_a_dead_letter_for_every_flow_that_reads_them() -> None:
    event = replace(make_event(), body=b"{")
    routed = route(event, [bill, paid])
    assert {run.state for run in routed.entry.runs} == {RunState.FAILED}
    assert "not JSON" in routed.refusals["bill"]


def test_an_unreadable_file_is_a_dead_letter() -> None:
    event = replace(make_event({}), extensions={"fileerror": "permission denied"})
    (run,) = route(event, [keyed]).entry.runs
    assert run.error is not None
    assert run.error.message == "the file cannot be read: permission denied"


def test_an_event_nobody_wants_and_an_event_that_goes_in_circles_say_so() -> None:
    verdicts: list[Any] = [
        route(make_event({}), []).entry.decisions,
        route(replace(make_event({}), hops=MAX_HOPS + 1), [bill]).entry.decisions,
    ]
    assert [decisions[0].verdict for decisions in verdicts] == ["unmatched", "cycle"]
