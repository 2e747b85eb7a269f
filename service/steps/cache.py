"""`cache=by_input(ttl="1h")`: cached results of a task, for later calls with equal input.

A result is used for the same task, in the same version of its code, with equal input (`digest`).
How arguments are written (by position or by name, the order of a dict) does not matter; their types
and every part of a value do, such as extra, private and unset fields of a model. Two runs that
call at once compute once (`alone`). Failures and fallbacks are not cached, and no tenant gets
another one's result.

A secret among the arguments is hashed with a random key of this process, so nothing on disk helps
to guess it, and its results are not found after a restart. Not here: where results are stored (the
journal).
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import CodeType
from typing import Any

from turnout.service.domain.errors import FOREIGN, NotKept, SetupError
from turnout.service.domain.flow import CODE_VERSION
from turnout.service.domain.units import parse_duration

from .digest import INPUT, encoded, join

_KEY_BYTES = 20


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """How long a task's results are cached."""

    ttl: timedelta


def by_input(*, ttl: str | timedelta) -> CachePolicy:
    """Cache a task's results for `ttl` and use them for calls with equal input."""
    kept = parse_duration(ttl)
    if not kept:
        raise SetupError("by_input(ttl=…) keeps results for a time, such as '1h'")
    return CachePolicy(kept)


def key_of(
    function: Callable[..., Any],
    task: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    tenant: str = "",
) -> bytes:
    """Return the key of a call; raises `NotKept` naming an argument that cannot be compared."""
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    parts = [f"{function.__module__}.{function.__qualname__}".encode(), task.encode()]
    parts.append(tenant.encode())
    parts.append(_version(function))
    for name, value in sorted(bound.arguments.items()):
        try:
            parts += [name.encode(), encoded(value, INPUT)]
        except FOREIGN as error:  # an argument's own code is asked
            raise NotKept(
                f"task {task!r} has cache=by_input(…) and its argument {name!r} cannot be part of "
                f"a key: {error}; pass plain data, a dataclass or a model, or cache a task that "
                f"takes an id"
            ) from None
    return join(parts, _KEY_BYTES)


def _version(function: Callable[..., Any]) -> bytes:
    """Return the version of a flow file as loaded; outside a project, of the function alone."""
    version: str = getattr(sys.modules.get(function.__module__), CODE_VERSION, "")
    return version.encode() if version else _code(function.__code__)


def _code(code: CodeType) -> bytes:
    constants = [
        _code(each) if isinstance(each, CodeType) else repr(each).encode()
        for each in code.co_consts
    ]
    return join([code.co_code, " ".join(code.co_names).encode(), *constants], _KEY_BYTES)


# ---------------------------------------------------------------- one at a time

_flights: dict[tuple[int, bytes], tuple[asyncio.Lock, list[None]]] = {}


@asynccontextmanager
async def alone(owner: object, key: bytes) -> AsyncIterator[None]:
    """Let one caller at a time work on a key of `owner`; the others wait."""
    place = (id(owner), key)
    lock, waiting = _flights.setdefault(place, (asyncio.Lock(), []))
    waiting.append(None)
    try:
        async with lock:
            yield
    finally:
        waiting.pop()
        if not waiting:
            del _flights[place]
