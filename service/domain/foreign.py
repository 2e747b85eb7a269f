"""Foreign code is called at a boundary: here, for an author's `when=`, `per=` and the like.

`when=`, `per=`, `ordered_by=`, `match=` and the checks of a model run inside the service. Whatever
they raise leaves this module as an `Exception`, and what they return is checked, so the journal can
store it. Only `KeyboardInterrupt` passes. They wait for nothing, so a `CancelledError` is their
own, such as the result of a cancelled task, and is treated like any other error.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Set
from typing import Any, TypeVar

from .errors import Exited, SetupError

T = TypeVar("T")

MAX_KEY_BYTES = 256
"""The longest text that is a key as it is; of a longer one the hash is."""

_SHOWN = 80
_ADDRESS = re.compile(r" at 0x[0-9a-f]+>")


def refuse_unaskable(option: str, question: Callable[..., Any]) -> None:
    """Raise `SetupError` for a function that cannot be asked about an event."""
    if inspect.iscoroutinefunction(question):
        raise SetupError(f"{option}= is asked while an event is accepted: `def`, not `async def`")
    try:
        inspect.signature(question).bind(None)
    except TypeError:
        raise SetupError(
            f"{option}= takes one argument, the event: {option}=lambda event: …"
        ) from None
    except ValueError:
        pass  # a built-in function without a signature


def ask(function: Callable[..., T], *args: Any) -> T:
    """Call an author's function; an error that is no `Exception` is raised as `Exited`."""
    try:
        return function(*args)
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001  passed on, it would end the trigger of the event
        raise Exited.of(error) from None


def is_true(option: str, answer: object) -> bool:
    """Return an answer as a bool; raises `TypeError` naming the option for an awaitable."""
    _refuse_awaitable(option, answer)
    return ask(bool, answer)


def as_key(option: str, answer: object) -> str:
    """Return an answer as text for the journal; raises an error that names the option.

    A text over `MAX_KEY_BYTES` becomes its hash. What has another text in the next process is no
    key: an object without a text of its own, and a set.
    """
    if type(answer) is int:
        return short_key(str(answer))
    if type(answer) is str:
        refuse_unstorable(option, answer)
        return short_key(answer)
    _refuse_awaitable(option, answer)
    key = ask(str, answer)
    if not isinstance(answer, str) and (
        isinstance(answer, Set) or (" at 0x" in key and _ADDRESS.search(key))
    ):
        raise TypeError(
            f"{option} answers with {key[:_SHOWN]}, whose text differs between processes; "
            "return a string or a number"
        )
    refuse_unstorable(option, key)
    return short_key(key)


def short_key(key: str) -> str:
    """Return a key as it is stored: as it is, or the hash of a long one."""
    if len(key) <= MAX_KEY_BYTES // 4:  # a character has at most four bytes
        return key
    data = key.encode()
    return key if len(data) <= MAX_KEY_BYTES else f"sha256:{hashlib.sha256(data).hexdigest()}"


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
