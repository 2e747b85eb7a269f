"""The boundary where an author's functions are asked: what they raise, and what they answer.

`when=`, `per=`, `ordered_by=`, `match=` and the checks of a model run while the service itself is
at work. Whatever they do comes out of here as an `Exception`, and their answers are what the
service can use and the journal can keep. Only `KeyboardInterrupt` passes: they wait for nothing, so
what looks like a cancel is one of their own, such as the result of a task that was cancelled.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from .errors import Exited

T = TypeVar("T")

_SHOWN = 80


def ask(function: Callable[..., T], *args: Any) -> T:
    """Call an author's function; what it raises that is no `Exception` is an `Exited` error."""
    try:
        return function(*args)
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001  passed on, it would end the trigger of the event
        raise Exited.of(error) from None


def is_true(option: str, answer: object) -> bool:
    """Return an answer as a truth; raises `TypeError` naming the option for one to be awaited."""
    _refuse_awaitable(option, answer)
    return ask(bool, answer)


def as_key(option: str, answer: object) -> str:
    """Return an answer as text for the journal; raises an error naming the option if it is none."""
    _refuse_awaitable(option, answer)
    key = ask(str, answer)
    refuse_unstorable(option, key)
    return key


def refuse_unstorable(what: str, text: str) -> None:
    """Raise `ValueError` naming `what` for text that UTF-8, and so the journal, cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = ascii(text[max(error.start - _SHOWN // 2, 0) : error.start + _SHOWN // 2])
        raise ValueError(
            f"{what}: {shown} holds {text[error.start]!a}, half of a character, which cannot "
            "be stored; decode what it is made of strictly, or escape it"
        ) from None


def _refuse_awaitable(option: str, answer: object) -> None:
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise TypeError(f"{option} answers with something to await; write `def`, not `async def`")
