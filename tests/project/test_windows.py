"""What `turnout check` says of windows: the flow, the line, and what to write instead."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from turnout.service.project.check import check

HEAD = """
from pathlib import Path
from pydantic import BaseModel
from turnout import *

class Order(BaseModel):
    id: str

@flow
def late(events: list[Event]) -> None: ...

@flow
def alone(path: Path) -> None: ...
"""


def problems(path: Path, body: str) -> list[str]:
    """Check a flow file; returns each problem with its line, from the flow under test on."""
    file = path / "flows.py"
    head = dedent(HEAD)
    file.write_text(head + dedent(body))
    lines = head.count("\n")
    return [f"{(each.line or 0) - lines}: {each.message}" for each in check([file]).problems]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (
            '@flow(on=count(webhook("/x"), 5))\ndef f(events: list[Event]) -> None: ...',
            'count(…): say in how much time, count(…, within="10m")',
        ),
        (
            '@flow(on=sequence(event("a"), within="1m"))\ndef f(events: list[Event]) -> None: ...',
            "sequence(event:a): a pattern has two triggers or more",
        ),
        (
            '@flow(on=all_of(within="1m"))\ndef f(events: list[Event]) -> None: ...',
            "all_of(): a pattern has two triggers or more",
        ),
        (
            '@flow(on=debounce(event("a"), "5s", max="5s"))\ndef f(event: Event) -> None: ...',
            "max is longer than the period",
        ),
        (
            '@flow(on=[debounce(event("a"), "5s"), event("b")])\ndef f(event: Event) -> None: ...',
            "1: flow 'f': debounce(…) is a window, which stands alone in on=: give other triggers "
            "a flow of their own, and name a trigger in awaits= and cancel_on=",
        ),
        (
            '@flow(on=event("b"), awaits=debounce(event("a"), "5s"))\ndef f() -> None: ...',
            "1: flow 'f': debounce(…) is a window, which stands alone in on=",
        ),
        (
            '@flow(on=batch(webhook("/x", respond=True), 5, "1s"))\n'
            "def f(events: list[Event]) -> None: ...",
            "1: flow 'f': webhook:/x answers with the result of its run (respond=True, ?wait=), "
            "and a run of batch(…) starts later; leave respond= out",
        ),
        (
            '@flow(on=batch(event("a"), 5, "1s"))\ndef f(order: Order) -> None: ...',
            "1: flow 'f': parameter `order: Order`: the flow is called with a list, one item for "
            "each event of its window; write `order: list[Order]`",
        ),
        (
            '@flow(on=absent(event("a"), "1h"))\ndef f(order: Order) -> None: ...',
            "1: flow 'f': parameter 'order': a run of absent(…) without after= has no data; take "
            "no parameter, or `event: Event`",
        ),
        (
            '@flow(on=all_of(event("a"), event("b"), within="1m", on_timeout=alone))\n'
            "def f(events: list[Event]) -> None: ...",
            "1: flow 'f': on_timeout=alone: flow 'alone': parameter `path: Path`: the flow is "
            "called with a list",
        ),
    ],
)
def test_a_window_that_cannot_be_meant_is_a_problem(
    tmp_path: Path, written: str, said: str
) -> None:
    (found,) = problems(tmp_path, written)
    assert said in found


def test_the_flow_of_a_timeout_is_one_of_those_that_are_served(tmp_path: Path) -> None:
    (found,) = problems(
        tmp_path,
        """
        def make():
            @flow
            def hidden(events: list[Event]) -> None: ...
            return hidden

        @flow(on=all_of(event("a"), event("b"), within="1m", on_timeout=make()))
        def f(events: list[Event]) -> None: ...
        """,
    )
    assert "on_timeout=hidden: that flow is not served with this one" in found


@pytest.mark.parametrize(
    "written",
    [
        '@flow(on=absent(event("a"), "1h"))\ndef f() -> None: ...',
        '@flow(on=absent(event("a"), "1h"))\ndef f(event: Event) -> None: ...',
        '@flow(on=absent(event("a"), "1h", after=event("b")))\ndef f(order: Order) -> None: ...',
        '@flow(on=debounce(event("a"), "1h"))\ndef f(order: Order) -> None: ...',
        '@flow(on=debounce(event("a"), "1h", keep="all"))\ndef f(os: list[Order]) -> None: ...',
        '@flow(on=batch(files("in/*.csv"), 5, "1h"))\ndef f(paths: list[Path]) -> None: ...',
        '@flow(on=all_of(event("a"), event("b"), within="1m", on_timeout=late))\n'
        "def f(orders: list[Order]) -> None: ...",
    ],
)
def test_a_window_that_can_be_meant_is_none(tmp_path: Path, written: str) -> None:
    assert problems(tmp_path, written) == []
