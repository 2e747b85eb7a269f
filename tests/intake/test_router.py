"""Every flow's answer to an event is a run, a dead letter or a decision with its reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import BaseModel, model_validator

from tests.support.running import make_event, running
from turnout import flow, limit
from turnout.service.domain.event import MAX_HOPS, Event
from turnout.service.domain.run import RunState
from turnout.service.governance import secrets
from turnout.service.intake.router import route
from turnout.service.project import AnyFlow


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
    _, _, _, arguments = routed.runs[0]
    assert arguments == {"order": Order(id="a", amount=5)}
    assert (routed.entry.runs[1].order_key, routed.entry.runs[1].keys) == ("a", {"limit": "5"})


def test_a_run_without_a_key_has_none_and_a_long_key_is_stored_as_its_hash() -> None:
    def key(data: object) -> str | None:
        (run,) = route(make_event(data), [per_data]).entry.runs
        assert run.keys is not None
        return run.keys["limit"]

    asked: list[object] = []

    def data_of(event: Event) -> Any:
        asked.append(event.data)
        return event.data

    @flow(concurrency=limit(1, per=data_of))
    async def per_data(event: Event) -> None: ...

    assert key(None) is None, "it shares nothing and waits for nobody"
    assert key("None") == "None"
    assert key("ä" * 128) == "ä" * 128, "256 bytes"
    hashed = key("ä" * 129)
    assert hashed is not None and hashed.startswith("sha256:") and len(hashed) == 71
    assert key("ä" * 129) == hashed != key("ä" * 130)
    assert len(asked) == 6, "once for each event"


def test_a_filter_that_says_no_is_a_decision_naming_it() -> None:
    routed = route(make_event({"amount": 0}), [paid])
    assert not routed.entry.runs
    decision = routed.entry.decisions[0]
    assert (decision.flow, decision.reason) == ("paid", "filtered")
    assert "test_router.py:" in decision.detail
    assert decision.facts == {
        "condition": 'when=lambda event: event.data["amount"] > 0',
        "file": __file__,
        "line": paid.condition and paid.condition.line,
    }


def test_a_filter_that_raises_is_a_dead_letter() -> None:
    routed = route(make_event({}), [paid])
    (run,) = routed.entry.runs
    assert run.state is RunState.FAILED
    assert run.error is not None
    assert run.error.type == "filter_error"
    assert "KeyError: 'amount'" in run.error.message
    assert not routed.refused_by_all  # a bug of ours is not the sender's


def is_large(event: Event) -> bool:
    limit = int(event.data["limit"])
    return bool(event.data["amount"] > limit)


@flow(when=lambda event: is_large(event))
async def large(event: Event) -> None: ...


@flow(when=lambda event: True, ordered_by=lambda event: event.data["customer"]["id"])
async def by_customer(event: Event) -> None: ...


def test_a_dead_letter_of_a_filter_shows_file_line_and_the_values_it_read() -> None:
    data = {"limit": 100, "amount": "much", "note": "not read"}
    routed = route(make_event(data), [large, by_customer])
    first, second = (run.error for run in routed.entry.runs)
    assert first is not None and second is not None
    line = is_large.__code__.co_firstlineno + 2
    assert first.message == (
        "TypeError: '>' not supported between instances of 'str' and 'int' (in when=, "
        f"at {__file__}:{line}, which read data.limit = 100; data.amount = 'much')"
    )
    assert "return bool(event.data" in (first.traceback or "")
    assert second.message == (
        "KeyError: 'customer' (in ordered_by=, at "
        f"{__file__}:{by_customer.line}, which read data.customer = missing)"
    )


def test_a_dead_letter_of_a_filter_shows_no_secret() -> None:
    secrets.remember({"s3cr3t-t0ken": "TOKEN"})
    data = {"limit": "s3cr3t-t0ken", "amount": 1}
    (run,) = route(make_event(data), [large]).entry.runs
    assert run.error is not None
    assert "data.limit = '********'" in run.error.message
    assert "s3cr3t" not in run.error.message + (run.error.traceback or "")


async def test_a_filter_that_raises_is_logged_and_counted_and_holds_up_no_other_flow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(tmp_path, [large, whole]) as service:
        receipt = await service.send({"limit": "none"})
        runs = {run.flow: run for run in await service.all_finished()}
        shown = service.process.metrics.render()
    assert (runs["large"].dead, runs["whole"].state) == (True, RunState.SUCCEEDED)
    (line,) = [line for line in lines_of(capsys) if line["message"] == "filter.failed"]
    assert (line["flow"], line["event"], line["run"]) == ("large", receipt.event, runs["large"].id)
    assert "data.limit = 'none'" in line["error"]
    assert b'turnout_filter_errors_total{flow="large"} 1.0' in shown


@flow
async def whole(event: Event) -> None: ...


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


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
    assert [decisions[0].reason for decisions in verdicts] == ["unmatched", "cycle"]


class Odd(BaseModel):
    id: str

    @model_validator(mode="after")
    def look(self) -> Odd:
        raise KeyError(self.id)


@flow
async def odd(order: Odd) -> None: ...


def test_an_error_in_the_code_of_a_type_is_no_filter_s_and_not_the_sender_s() -> None:
    routed = route(make_event({"id": "a"}), [odd])
    (run,) = routed.entry.runs
    assert run.error is not None and run.error.type == "binding_error"
    assert run.error.message == "KeyError: 'a' (in the code of a parameter's type)"
    assert not routed.refused_by_all


def spoil(event: Event) -> bool:
    """Do in a filter what nobody should."""
    event.data["card"]["number"] = "****"
    event.data["seen"] = True
    event.headers["x"] = "spoilt"  # type: ignore[index]  # what a typed author would not do
    return True


@flow(when=spoil)
async def spoiler(event: Event) -> None: ...


@flow(when=lambda event: "seen" not in event.data, ordered_by=lambda event: spoil(event))
async def other(data: dict[str, Any]) -> None: ...


@flow
async def third(data: Any) -> None: ...


@pytest.mark.parametrize("flows", [[spoiler], [other], [spoiler, other, third], [third, spoiler]])
def test_what_a_filter_changes_no_flow_no_other_filter_and_no_journal_sees(
    flows: list[AnyFlow],
) -> None:
    event = make_event({"card": {"number": "4111"}})
    _ = event.data  # as a trigger has decoded it
    routed = route(event, flows)
    assert [run.state for run in routed.entry.runs] == [RunState.QUEUED] * len(flows)
    for _, _, _, arguments in routed.runs:
        assert arguments is not None
        (value,) = arguments.values()
        data = value.data if isinstance(value, Event) else value
        assert data == {"card": {"number": "4111"}}
        data["card"]["number"] = "****"  # and what this flow's run does the next does not see
    assert routed.entry.event.headers == {}
    assert len({id(own) for _, _, own, _ in routed.runs}) == len(flows)


@flow(ordered_by="key")
async def keyed_by_kafka(data: Any) -> None: ...


@pytest.mark.parametrize("only", [third, keyed_by_kafka])
def test_the_only_flow_is_given_what_the_trigger_has_decoded_and_mappings_of_its_own(
    only: AnyFlow,
) -> None:
    event = make_event({"a": 1})
    data = event.data
    routed = route(event, [only])
    [(_, flow, own, arguments)] = routed.runs
    assert flow is only and own == event
    assert arguments is not None and arguments["data"] is data
    for mapping in (own.headers, own.params, own.query, own.extensions):
        cast(dict[str, Any], mapping)["mine"] = "spoilt"
    assert not (event.headers or event.params or event.query or "mine" in event.extensions)
