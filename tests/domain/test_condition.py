"""The text of a condition is that of the file, also among several on one line."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

import pytest

from turnout.service.domain.condition import condition_of
from turnout.service.domain.event import Event


def is_paid(event: Event) -> bool:
    return bool(event.data["paid"])


one, two = lambda event: event.data["a"] > 1, lambda event: event.data["b"]
tall = lambda event: (  # noqa: E731
    event.data["a"]  # a comment
    and event.data["b"]
)


def nested(limit: int) -> tuple[Callable[[Event], Any], ...]:
    return (lambda event: [one for one in event.data if (lambda: one > limit)()], tall)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (is_paid, "when=is_paid"),
        (one, 'when=lambda event: event.data["a"] > 1'),
        (two, 'when=lambda event: event.data["b"]'),
        (
            nested(3)[0],
            "when=lambda event: [one for one in event.data if (lambda: one > limit)()]",
        ),
        (tall, "when=lambda event: event.data['a'] and event.data['b']"),
        (attrgetter("data"), "when=attrgetter"),
        (partial(is_paid), "when=partial"),
        (eval("lambda event: True"), "when=lambda"),
    ],
)
def test_a_condition_is_shown_as_it_is_written(function: Callable[..., Any], words: str) -> None:
    assert condition_of("when", function, "flows.py", 1).words == words


def test_a_condition_says_where_it_stands() -> None:
    found = condition_of("when", is_paid, "flows.py", 1)
    assert found.location == f"{__file__}:{is_paid.__code__.co_firstlineno}"
    assert condition_of("when", attrgetter("data"), "flows.py", 7).location == "flows.py:7"
