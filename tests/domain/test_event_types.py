"""Patterns of event types: `*` within a part, `**` over parts, in bounded time."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.service.domain.event_types import (
    MAX_TYPE_CHARACTERS,
    have_common_type,
    matches,
    problem_of_emit,
    problem_of_event,
)


@pytest.mark.parametrize(
    ("pattern", "event_type", "answer"),
    [
        ("order.*", "order.paid", True),
        ("order.*", "order.paid.late", False),
        ("order.*", "order", False),
        ("order.*", "order.", False),
        ("order.pa*", "order.paid", True),
        ("order.pa*", "order.pa", True),
        ("*.paid", "order.paid", True),
        ("*.paid", "shop.order.paid", False),
        ("**.paid", "shop.order.paid", True),
        ("**.paid", "paid", False),
        ("order.**", "order.paid.late", True),
        ("order.**", "order", False),
        ("com.**.order.*", "com.example.shop.order.paid", True),
        ("com.**.order.*", "com.order.paid", False),
        ("**", "anything.at.all", True),
        ("order.paid", "order.paid", True),
        ("order.paid", "order-paid", False),
    ],
)
def test_a_star_stays_within_a_part_and_two_go_over_parts(
    pattern: str, event_type: str, answer: bool
) -> None:
    assert matches(pattern, event_type) is answer


def as_expression(pattern: str) -> str:
    """Say the same as a regular expression, which takes exponential time."""
    parts = []
    for part in pattern.split("."):
        if part == "**":
            parts.append(r"[^.]+(?:\.[^.]*)*")
        elif "*" in part:
            parts.append(r"(?!(?:\.|$))" + re.escape(part).replace(r"\*", "[^.]*"))
        else:
            parts.append(re.escape(part))
    return r"\.".join(parts)


part = st.sampled_from(["a", "b", "ab", "*", "a*", "*b", "*a*", "**"])
word = st.sampled_from(["a", "b", "ab", "ba", "aab"])


@given(st.lists(part, min_size=1, max_size=5), st.lists(word, min_size=1, max_size=6))
def test_patterns_match_as_the_regular_expression_does(parts: list[str], words: list[str]) -> None:
    pattern, event_type = ".".join(parts), ".".join(words)
    expected = re.fullmatch(as_expression(pattern), event_type) is not None
    assert matches(pattern, event_type) is expected


def test_a_hostile_type_takes_no_time() -> None:
    began = time.process_time()
    assert not matches("**.*a*a*a*a*a*b." * 3 + "x", ".".join(["a" * 40] * 40))
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("one", "other", "answer"),
    [
        ("order.paid", "order.paid", True),
        ("order.paid", "order.placed", False),
        ("order.*", "order.paid", True),
        ("order.*", "*.paid", True),
        ("order.p*", "order.*d", True),
        ("order.a*", "order.b*", False),
        ("order.**", "**.paid", True),
        ("order.*", "order.*.late", False),
        ("com.**", "org.**", False),
    ],
)
def test_two_patterns_may_have_a_type_in_common(one: str, other: str, answer: bool) -> None:
    assert have_common_type(one, other) is answer
    assert have_common_type(other, one) is answer


@given(
    st.lists(part, min_size=1, max_size=4),
    st.lists(part, min_size=1, max_size=4),
    st.lists(word, min_size=1, max_size=5),
)
def test_a_type_that_two_patterns_match_is_in_common(
    one: list[str], other: list[str], words: list[str]
) -> None:
    patterns, event_type = (".".join(one), ".".join(other)), ".".join(words)
    if all(matches(pattern, event_type) for pattern in patterns):
        assert have_common_type(*patterns)


@pytest.mark.parametrize("event_type", ["order.paid", "a", "x" * MAX_TYPE_CHARACTERS, "größe"])
def test_what_is_a_type_may_be_emitted_and_listened_to(event_type: str) -> None:
    assert problem_of_emit(event_type) is problem_of_event(event_type) is None


@pytest.mark.parametrize("event_type", ["", "a b", " a", "a\n", "a\u00a0b"])
def test_a_type_is_one_word_whoever_says_it(event_type: str) -> None:
    assert problem_of_emit(event_type) == (
        f'emit({event_type!r}): a type is one word, as in emit("order.paid", data), and no flow '
        "can listen to another"
    )
    assert problem_of_event(event_type) == (
        f'event({event_type!r}): a type is one word, as in event("com.example.order.paid")'
    )


def test_a_long_type_is_told_by_its_beginning() -> None:
    told = f"emit({'x' * 32!r}…): a type has at most 256 characters"
    assert str(problem_of_emit("x" * 257)).startswith(told)
