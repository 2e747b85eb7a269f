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
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from datetime import timedelta
from types import CodeType
from typing import TYPE_CHECKING, Any

from turnout.service.domain.errors import (
    FOREIGN,
    CodeChanged,
    JournalError,
    JournalFull,
    NotKept,
    SetupError,
)
from turnout.service.domain.flow import CODE_VERSION
from turnout.service.domain.task import CachePolicy
from turnout.service.domain.units import parse_duration
from turnout.service.journal.records import Cached, StepRecord

from . import codec
from .digest import INPUT, encoded, join
from .recording import store

if TYPE_CHECKING:
    from .step import StepCall

_KEY_BYTES = 20


def by_input(*, ttl: str | timedelta) -> CachePolicy:
    """Cache a task's results for calls with equal input: `@task(cache=by_input(ttl="1h"))`.

    Every run of the service uses them, also after a restart, until the code of the task changes.
    Input is equal if the arguments are, with their types. Runs that ask at the same time compute
    once. Failures and fallbacks are not cached. `turnout cache clear TASK` forgets results.

    * `ttl`: how long a result is used, such as `"1h"`

    Raises `SetupError` for a duration of 0; a call whose arguments cannot be compared fails by
    name.

    ```python
    from turnout import by_input, flow, task


    @task(cache=by_input(ttl="1h"))
    async def rate(currency: str) -> float:
        return {"EUR": 1.0, "USD": 0.9}[currency]


    @flow
    async def convert(currency: str) -> float:
        return 100 * await rate(currency)
    ```
    """
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
    flight = (id(owner), key)
    lock, waiting = _flights.setdefault(flight, (asyncio.Lock(), []))
    waiting.append(None)
    try:
        async with lock:
            yield
    finally:
        waiting.pop()
        if not waiting:
            del _flights[flight]


# ---------------------------------------------------------------- a step with cached results


async def use_cache(
    call: StepCall, policy: CachePolicy, perform: Callable[[StepCall], Awaitable[Any]]
) -> Any:
    """Return the cached result of a call with equal input, or `perform` it and cache the result."""
    journal, task, now = call.services.journal, call.task, call.services.now
    tenant = call.context.claimed.event.tenant
    key = key_of(task.function, task.name, call.args, call.kwargs, tenant=tenant)
    async with alone(journal, key):
        hit = await journal.cached(key, now=now())
        if hit is not None:
            with nullcontext() if hit.blob is None else journal.hold_blob(hit.blob):
                try:
                    value = await _read(call, hit)
                except (CodeChanged, JournalError):
                    pass  # a miss: it no longer fits the code, or its file is gone
                else:
                    await _take(call, hit)
                    return value
        value = await perform(call)
        if call.done is not None:
            cached = Cached(
                key=key,
                task=task.name,
                run_id=call.context.claimed.claim.run_id,
                encoding=call.done.encoding,
                result=call.done.result,
                blob=call.done.blob,
                stored_at=now(),
                expires_at=now() + policy.ttl,
            )
            with suppress(JournalFull):  # it will be computed again
                await journal.cache(cached)
        return value


async def _read(call: StepCall, hit: Cached) -> Any:
    """Return the value of a cached result; raises an error if it cannot be used."""
    data = hit.result
    if hit.blob is not None:
        data = await call.services.journal.read_blob(hit.blob)
    return codec.decode(hit.encoding, data or b"", call.task.returns, name=call)


async def _take(call: StepCall, hit: Cached) -> None:
    """Record a cached result as this step's, with the run it comes from and zero tries."""
    now = call.services.now()
    await store(
        call.context,
        StepRecord(
            key=call.key,
            task=call.task.name,
            state="succeeded",
            tries=0,
            started_at=now,
            finished_at=now,
            encoding=hit.encoding,
            result=hit.result,
            origin=hit.run_id,
            blob=hit.blob,
            in_error_handler=call.in_error_handler,
            arguments=call.arguments,
        ),
    )
    flow = call.context.claimed.flow
    call.services.metrics.steps.labels(flow, call.task.name, "cached").inc()
