"""What a condition reads of an event, for people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.running import make_event
from turnout.service.domain.event import Event
from turnout.service.domain.watched import watched

DATA = {"amount": 5, "customer": {"name": "ada", "order-id": 7}, "items": [{"n": 1}, {"n": 2}]}


@pytest.mark.parametrize(
    ("question", "shown"),
    [
        (lambda event: event.data["amount"] > 3, {"data.amount": "5"}),
        (lambda event: event.data.get("none"), {"data.none": "missing"}),
        (lambda event: "none" in event.data, {"data.none": "missing"}),
        (
            lambda event: event.data["customer"]["name"] == event.data["customer"]["order-id"],
            {"data.customer.name": "'ada'", "data.customer['order-id']": "7"},
        ),
        (
            lambda event: all(item["n"] for item in event.data["items"]),
            {"data.items[0].n": "1", "data.items[1].n": "2"},
        ),
        (lambda event: event.data["items"][-1]["n"], {"data.items[-1].n": "2"}),
        (lambda event: event.type == "test", {"type": "'test'"}),
        (lambda event: event.headers.get("x-shop"), {"headers['x-shop']": "missing"}),
        (lambda event: len(event.data), {"data": repr(DATA)}),
    ],
)  # fmt: skip
def test_the_fields_that_were_read_are_shown_with_their_values(
    question: Callable[[Event], Any], shown: dict[str, str]
) -> None:
    event, reads = watched(make_event(DATA))
    assert question(event) == question(make_event(DATA))
    assert reads.shown(str) == shown


def test_the_last_reads_are_shown_and_long_values_are_cut() -> None:
    event, reads = watched(make_event({"text": "x" * 10_000, "list": list(range(100))}))
    assert sum(event.data["list"]) == sum(range(100))
    assert event.data["text"]
    assert len(reads.shown(str)) <= 20
    assert reads.shown(str)["data.list[99]"] == "99"
    assert len(reads.shown(str)["data.text"]) <= 80


def test_a_missing_field_is_noted_before_the_question_fails() -> None:
    event, reads = watched(make_event(DATA))
    with pytest.raises(KeyError):
        _ = event.data["customer"]["age"]
    with pytest.raises(IndexError):
        _ = event.data["items"][5]
    assert reads.shown(str) == {"data.customer.age": "missing", "data.items[5]": "missing"}


def test_a_secret_is_masked_before_a_text_is_cut() -> None:
    secret = "s" * 300
    event, reads = watched(make_event({"text": f"a {secret} b", "list": [secret]}))
    assert event.data["text"] and event.data["list"]
    shown = reads.shown(lambda text: text.replace(secret, "***"))
    assert shown == {"data.text": "'a *** b'", "data.list": "['***']"}
