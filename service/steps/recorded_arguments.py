"""The recorded arguments of a step, compared when a resumed run reaches the step again.

A digest of the arguments tells whether it is the same call, and a few words tell people which call
it was. Arguments without a digest (an object of an unknown type, a thousand rows, a secret's value)
are recorded as such and not compared.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from turnout.service.domain.errors import FOREIGN
from turnout.service.governance import secrets
from turnout.service.journal.records import RecordedArguments

from .digest import ARGUMENTS, encoded

UNKNOWN = "?"
"""Recorded in place of a digest for arguments that have none."""

_MAX_TEXT = 40
_MAX_SHOWN = 4
_OWN_FOLDER = f"{Path(__file__).parent.parent.parent}/"
_STANDARD_LIBRARY = f"{Path(os.__file__).parent}/"


def arguments_of(
    name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> RecordedArguments:
    """Return what is recorded of a call of `name`: `f(1)` and `f(x=1)` are the same call."""
    placed, named = _placed(function, args, kwargs) if kwargs else (args, {})
    try:
        data = encoded([[*placed], named], ARGUMENTS)
    except FOREIGN:  # a value without a digest, or an author's object that raises
        data = None
    if data is None or secrets.find_live(data) is not None:
        digest = UNKNOWN  # a digest on disk would help to guess a secret
    else:
        digest = blake2b(data, digest_size=8).hexdigest()
    return RecordedArguments(digest, _words(name, placed, named))


def _placed(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Return as many arguments as possible by position: `f(order=x)` is `f(x)`."""
    placed, named = [*args], dict(kwargs)
    code = function.__code__
    for name in code.co_varnames[len(args) : code.co_argcount]:
        if name not in named:
            break
        placed.append(named.pop(name))
    return placed, named


def _words(name: str, args: Any, kwargs: Mapping[str, Any]) -> str:
    shown = [_shown(value) for value in args[:_MAX_SHOWN]]
    shown += [f"{key}={_shown(value)}" for key, value in kwargs.items()][:_MAX_SHOWN]
    more = ", …" if len(args) + len(kwargs) > len(shown) else ""
    words = f"{name}({', '.join(shown)}{more})"
    return secrets.mask(words) if secrets.any_live() else words


def _shown(value: Any) -> str:
    kind = type(value)
    if kind is str:
        return repr(value) if len(value) <= _MAX_TEXT else f"{value[:_MAX_TEXT]!r}…"
    if value is None or kind is bool or kind is float:
        return repr(value)
    if kind is int and -(2**63) <= value < 2**63:
        return repr(value)
    return f"{kind.__name__}(…)"


def author_line() -> str | None:
    """Return `FILE:LINE` in the author's code of the current call, None if turnout makes it."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_STANDARD_LIBRARY) and "site-packages" not in file:
            return None
        if not file.startswith(_OWN_FOLDER):
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]  # None at the end
    return None
