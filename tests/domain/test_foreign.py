"""What an author's functions answer as keys: text that stays the same, or it is refused."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any

import pytest

from turnout.service.domain.errors import SetupError
from turnout.service.domain.foreign import as_key, refuse_unaskable


class Color(Enum):
    RED = 1


class Bare:
    pass


@pytest.mark.parametrize(
    ("answer", "text"),
    [(7, "7"), (("a", 1), "('a', 1)"), ({"a": 1}, "{'a': 1}"), (Color.RED, "Color.RED"),
     ("<x at 0x7f>", "<x at 0x7f>"), ({"at": "a at 0x7f >"}, "{'at': 'a at 0x7f >'}")],
)  # fmt: skip
def test_an_answer_becomes_text(answer: Any, text: str) -> None:
    assert as_key("per=", answer) == text


@pytest.mark.parametrize(
    "answer", [object(), Bare(), [Bare()], lambda: 1, map(len, []), {"a", "b"}, frozenset("ab")]
)
def test_what_has_another_text_in_the_next_process_is_no_key(answer: Any) -> None:
    with pytest.raises(TypeError, match=r"^per= answers with .*, whose text differs "):
        as_key("per=", answer)


async def later(event: Any) -> str:
    return "x"


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (lambda: 1, "per= takes one argument, the event: per=lambda event: …"),
        (lambda a, b: 1, "per= takes one argument, the event: per=lambda event: …"),
        (later, "per= is asked while an event is accepted: `def`, not `async def`"),
    ],
)
def test_a_function_that_cannot_be_asked_is_refused(
    question: Callable[..., Any], said: str
) -> None:
    with pytest.raises(SetupError) as refused:
        refuse_unaskable("per", question)
    assert refused.value.message == said


@pytest.mark.parametrize("question", [lambda event: 1, lambda *a: 1, partial(max, 1), str, len])
def test_one_that_can_is_taken(question: Callable[..., Any]) -> None:
    refuse_unaskable("per", question)
