"""The recorded arguments of a step, compared when a resumed run reaches the step again.

A digest of the arguments tells whether it is the same call, and a few words tell people which call
it was. Arguments without a digest (an object of an unknown type, a thousand rows, a secret's value)
are recorded as such and not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from turnout.service.domain.errors import FOREIGN
from turnout.service.domain.unknown import Unknown
from turnout.service.governance import secrets
from turnout.service.journal.records import RecordedArguments

from .digest import ARGUMENTS, encoded_call
from .exact import ATOMS

UNKNOWN = "?"
"""Recorded in place of a digest for arguments that have none."""

_MAX_TEXT = 40
_MAX_SHOWN = 4


class ShownShort:
    """An argument that says itself how people see it, with secrets masked; "" leaves it out."""

    __slots__ = ()

    def shown(self) -> str:
        """Return a few words."""
        raise NotImplementedError


def arguments_of(
    name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> RecordedArguments:
    """Return what is recorded of a call of `name`: `f(1)` and `f(x=1)` are the same call."""
    placed, named = _placed(function, args, kwargs) if kwargs else (args, {})
    try:
        data = encoded_call(placed, named, ARGUMENTS)
    except FOREIGN:  # a value without a digest, or an author's object that raises
        data = None
    shown = _shown
    if secrets.live_forms:
        if data is not None and secrets.find_live(data) is not None:
            data = None  # a digest on disk would help to guess it
        if data is None:
            shown = _masked
    if data is None:
        return RecordedArguments(UNKNOWN, _words(name, placed, named, shown))
    digest = blake2b(data, digest_size=8).hexdigest()
    is_short = len(data) <= _MAX_TEXT and not named and len(placed) <= _MAX_SHOWN
    if is_short and shown is _shown and ATOMS.issuperset(map(type, placed)):
        # Most calls: every text is short, so that Python's own words for them will do.
        words = f"({placed[0]!r})" if len(placed) == 1 else f"{(*placed,)!r}"
        return RecordedArguments(digest, name + words)
    return RecordedArguments(digest, _words(name, placed, named, shown))


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


def _words(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], shown: Callable[[Any], str]
) -> str:
    words = [*filter(None, map(shown, args[:_MAX_SHOWN]))]
    if kwargs:
        words += [f"{key}={shown(kwargs[key])}" for key in [*kwargs][:_MAX_SHOWN]]
    if len(args) > _MAX_SHOWN or len(kwargs) > _MAX_SHOWN:
        words.append("…")
    return f"{name}({', '.join(words)})"


def _masked(value: Any) -> str:
    return secrets.mask(_shown(secrets.mask(value) if type(value) is str else value))


def _shown(value: Any) -> str:
    kind = type(value)
    if kind is str:
        return repr(value) if len(value) <= _MAX_TEXT else f"{value[:_MAX_TEXT]!r}…"
    if value is None or kind is bool or kind is float:
        return repr(value)
    if kind is int and -(2**63) <= value < 2**63:
        return repr(value)
    if isinstance(value, ShownShort):
        return value.shown()
    return repr(value) if kind is Unknown else f"{kind.__name__}(…)"
