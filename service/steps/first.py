"""`first`: a run awaits several waits, and goes on with the one that comes first.

What comes first is decided by the journal: of events, answers and child runs that have ended, the
one that was stored first; time ends a wait only if nothing else has. The choice is recorded once,
in the transaction that closes the other waits, so every later attempt gets the same answer.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, Literal, NamedTuple, TypeVar, overload

import orjson

from turnout.service.domain.errors import CodeChanged, MisplacedTask
from turnout.service.domain.retry import RetryPolicy
from turnout.service.domain.task import Task
from turnout.service.domain.unknown import DryRunEnds
from turnout.service.journal.records import NOTHING, Opening, StepRecord

from .approval import Asked
from .author_code import where
from .durable_wait import Came, Wait, begun, host_of, refuse_thread, wait_of
from .recording import durable
from .scope import Scope, here
from .step import StepCall
from .suspension import suspend
from .unawaited import to_await

W = TypeVar("W", bound=int)
T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")
T6 = TypeVar("T6")

MOST_WAITS = 100
"""Waits of one `first`, each of which is a recorded step."""


class First(NamedTuple, Generic[W, T]):
    """The wait that came first: `which` it is, counted from 0, and the `value` it came with."""

    which: W
    value: T


# fmt: off
@overload
def first(a: Awaitable[T1], /) -> Coroutine[object, None, First[Literal[0], T1]]: ...
@overload
def first(a: Awaitable[T1], b: Awaitable[T2], /) -> Coroutine[object, None, First[Literal[0], T1] | First[Literal[1], T2]]: ...  # noqa: E501  one line per arity reads best
@overload
def first(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], /) -> Coroutine[object, None, First[Literal[0], T1] | First[Literal[1], T2] | First[Literal[2], T3]]: ...  # noqa: E501  one line per arity reads best
@overload
def first(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], d: Awaitable[T4], /) -> Coroutine[object, None, First[Literal[0], T1] | First[Literal[1], T2] | First[Literal[2], T3] | First[Literal[3], T4]]: ...  # noqa: E501  one line per arity reads best
@overload
def first(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], d: Awaitable[T4], e: Awaitable[T5], /) -> Coroutine[object, None, First[Literal[0], T1] | First[Literal[1], T2] | First[Literal[2], T3] | First[Literal[3], T4] | First[Literal[4], T5]]: ...  # noqa: E501  one line per arity reads best
@overload
def first(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], d: Awaitable[T4], e: Awaitable[T5], f: Awaitable[T6], /) -> Coroutine[object, None, First[Literal[0], T1] | First[Literal[1], T2] | First[Literal[2], T3] | First[Literal[3], T4] | First[Literal[4], T5] | First[Literal[5], T6]]: ...  # noqa: E501  one line per arity reads best
@overload
def first(a: Awaitable[T], b: Awaitable[T], c: Awaitable[T], d: Awaitable[T], e: Awaitable[T], f: Awaitable[T], g: Awaitable[T], /, *more: Awaitable[T]) -> Coroutine[object, None, First[int, T]]: ...  # noqa: E501  one line per arity reads best
# fmt: on
def first(*waits: Awaitable[Any]) -> Coroutine[object, None, First[Any, Any]]:
    """Await several waits, and go on with the one that comes first.

    Returns `which` of them it is, counted from 0, and the `value` it came with. The choice is
    recorded: it stays the same over restarts and retries. The other waits are dropped in the same
    transaction: an event for them wakes nothing (a later `wait_for` may take it), a question cannot
    be answered any more, and a child run is cancelled.

    Of events, answers and child runs that have ended, the one that was stored first comes first,
    whatever its time says. What `poll` has found comes after these, and a time ends a wait only if
    nothing else has.

    * `waits`: 1 to 100 of what `sleep`, `wait_for`, `approval`, `poll` and the call of a flow
      return

    Raises the error of the wait that comes first, if it ends with one: `TimeoutError` of its
    `timeout=`, `Rejected`, `StepFailed` of a child run. Raises `MisplacedTask` for what is no wait.

    ```python
    from turnout import event, first, flow, sleep, wait_for

    paid, cancelled = event("order.paid"), event("order.cancelled")


    @flow(on=event("order.placed"), awaits=[paid, cancelled])
    async def order(data: dict[str, str]) -> str:
        mine = {"order": data["id"]}
        match await first(wait_for(paid, match=mine), wait_for(cancelled, match=mine), sleep("2d")):
            case (0, event):
                return f"paid {event.data['amount']}"
            case (1, _):
                return "cancelled"
            case _:
                return "forgotten"
    ```
    """
    try:
        scope = here("first")
        if not waits:
            raise TypeError("first() takes waits: first(wait_for(paid), sleep('2d'))")
        if scope is None:
            return to_await(_race(waits), "first")
        refuse_thread("first")
        members = _members(scope, waits)
        keys = [each.call.key for each in members]
        call = StepCall(_FIRST, scope, scope.next_key("first"), tuple(keys), {})
    except BaseException:
        _close(waits)
        raise
    _close(waits)  # what they wait for is awaited here, together
    return to_await(_first(call, members, keys), "first")


def _members(scope: Scope, waits: Sequence[Awaitable[Any]]) -> list[Wait[Any]]:
    if len(waits) > MOST_WAITS:
        raise ValueError(f"first() takes at most {MOST_WAITS} waits, got {len(waits)}")
    found: list[Wait[Any]] = []
    for number, each in enumerate(waits, start=1):
        wait = wait_of(each)
        if wait is None:
            pending = scope.context.pending_calls
            words = None if pending is None else pending.words_of(each)
            raise MisplacedTask(
                f"first(), called at {where()}, takes what sleep(), wait_for(), approval(), "
                f"poll() and the call of a flow return; number {number} is "
                f"{words or _kind(each)}: await it by itself, or make it a flow of its own, whose "
                f"call is a wait"
            )
        if wait in found:
            raise MisplacedTask(f"first(), called at {where()}, is given {wait.call} twice")
        found.append(wait)
    return found


def _kind(each: object) -> str:
    name = getattr(each, "__qualname__", None)
    return f"a {type(each).__name__}" if name is None else f"{name}()"


def _close(waits: Sequence[Awaitable[Any]]) -> None:
    for each in waits:
        if inspect.iscoroutine(each) or isinstance(each, Asked):
            each.close()


async def _race(waits: Sequence[Awaitable[Any]]) -> First[Any, Any]:
    """Await the first outside any run, where nothing is recorded."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_outcome(each)) for each in waits]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        which = next(number for number, each in enumerate(tasks) if each.done())
        for each in tasks:
            each.cancel()
    value, error = tasks[which].result()
    if error is not None:
        raise error
    return First(which, value)


async def _outcome(awaitable: Awaitable[T]) -> tuple[T | None, Exception | None]:
    try:
        return await awaitable, None
    except Exception as error:  # noqa: BLE001  an author's flow; it is raised where it is awaited
        return None, error


# ---------------------------------------------------------------- in a run


async def _first(call: StepCall, waits: list[Wait[Any]], keys: list[str]) -> First[Any, Any]:
    if call.services.dry_run is not None:
        raise DryRunEnds("the flow goes on by which wait comes first")
    known = call.recorded()
    if known is not None:
        _refuse_others(call, known, keys)
        if known.state != "waiting":
            return await _again(call, waits, known)
    known, of_each = await _opened(call, known, waits)
    came = await _look(waits, of_each)
    if came is None:
        each_due = [wait.due_at(each) for wait, each in zip(waits, of_each, strict=True)]
        due = [at for at in each_due if at is not None]
        seen = {each.call.key: each.seen for each in waits if each.seen is not None}
        suspend(seen, min(due, default=None))
    which, how = came
    error = await _choose(call, known, waits, of_each, which, how)
    if error is not None:
        _again_after(call, waits, error)
        raise error
    return First(which, how.value)


def _refuse_others(call: StepCall, known: StepRecord, keys: list[str]) -> None:
    """Raise `CodeChanged` if other waits are recorded at this place."""
    before = orjson.loads(known.result or b"{}").get("waits") or ()
    if [*before] != keys:
        raise CodeChanged(
            f"the waits of {call} changed under this run: it is recorded as "
            f"first({', '.join(before)}) and is now called as first({', '.join(keys)}); if they "
            f"depend on a clock or on chance, ask that in a task, else put the old ones back, or "
            f"keep both ways with `if patched(…)`"
        )


async def _again(call: StepCall, waits: list[Wait[Any]], known: StepRecord) -> First[Any, Any]:
    """Return what an earlier attempt has chosen, or raise its error."""
    which: int = orjson.loads(known.result or b"{}")["which"]
    of_each = [wait.call.recorded() for wait in waits]  # their arguments may have changed
    end = of_each[which]
    assert end is not None  # recorded in one transaction with the choice
    try:
        return First(which, await waits[which].recall(end))
    except Exception as error:
        _again_after(call, waits, error)
        raise


def _again_after(call: StepCall, waits: list[Wait[Any]], error: Exception) -> None:
    """Note that all of it is awaited anew if the flow does not catch an error."""
    keys = (call.key, *(wait.call.key for wait in waits))
    call.context.ended_by += [(key, error) for key in keys]


async def _opened(
    call: StepCall, known: StepRecord | None, waits: list[Wait[Any]]
) -> tuple[StepRecord, list[StepRecord]]:
    """Open the waits that are not open yet; returns the record of all together, and of each."""
    found = [wait.recorded() for wait in waits]
    if any(found):
        await _read(call, waits)
    of_each: list[StepRecord] = []
    new: list[StepRecord] = []
    openings: dict[str, Opening] = {}
    for wait, each in zip(waits, found, strict=True):
        if each is not None and (each.state != "waiting" or wait.is_open(each)):
            of_each.append(each)
            continue
        joining = await wait.join(each, call.key)
        of_each.append(joining.record)
        if not joining.is_stored:
            new.append(joining.record)
        if joining.opening is not None:
            openings[wait.call.key] = joining.opening
    if known is None:
        known = begun(call, {"waits": [wait.call.key for wait in waits]}, None)
        new.insert(0, known)
    if new:
        await _record(call, new, openings=openings)
    return known, of_each


async def _read(call: StepCall, waits: Sequence[Wait[Any]]) -> None:
    """Read what the journal has of all waits, at one time."""
    rows = await call.services.journal.waits(call.context.claimed.claim.run_seq)
    by_key = {row.key: row for row in rows}
    for wait in waits:
        wait.row = by_key.get(wait.call.key)


async def _look(
    waits: Sequence[Wait[Any]], of_each: Sequence[StepRecord]
) -> tuple[int, Came[Any]] | None:
    """Return which wait came first, and how; None if none has come."""
    came: dict[int, Came[Any]] = {}
    await _look_once(waits, of_each, came)
    if came:
        # What was stored before it, after the other waits were looked at, came before it.
        await _read(waits[0].call, waits)
        await _look_once(waits, of_each, came)
    else:
        for number, (wait, known) in enumerate(zip(waits, of_each, strict=True)):
            how = wait.time_is_over(known)
            if how is not None:
                came[number] = how
    if not came:
        return None
    which = min(came, key=lambda number: (came[number].position, number))
    for number in came:
        if number != which:
            waits[number].release()
    return which, came[which]


async def _look_once(
    waits: Sequence[Wait[Any]], of_each: Sequence[StepRecord], came: dict[int, Came[Any]]
) -> None:
    """Add the waits that are over by what is in the journal."""
    for number, (wait, known) in enumerate(zip(waits, of_each, strict=True)):
        if number not in came:
            is_open = known.state == "waiting"
            how = await wait.look(known) if is_open else await _over(wait, known)
            if how is not None:
                came[number] = how


async def _over(wait: Wait[Any], known: StepRecord) -> Came[Any]:
    """Return how a wait was over that has ended before."""
    position = wait.position(known)
    try:
        return Came(position, await wait.recall(known))
    except Exception as error:  # noqa: BLE001  what the flow has caught then
        return Came(position, error=error)


async def _choose(
    call: StepCall,
    known: StepRecord,
    waits: Sequence[Wait[Any]],
    of_each: Sequence[StepRecord],
    which: int,
    how: Came[Any],
) -> Exception | None:
    """Record which wait came first and how, and drop the others; returns the error to raise."""
    winner, error = waits[which], how.error
    new: list[StepRecord] = []
    if of_each[which].state == "waiting":
        winner.call.done = winner.ended(of_each[which], how)
        new.append(winner.call.done)
        error = winner.call.delivered() if error is not None else None
    now = call.services.now()
    for wait, each in zip(waits, of_each, strict=True):
        if wait is not winner and each.state == "waiting":
            wait.call.done = replace(each, state="dropped", finished_at=now)
            new.append(wait.call.done)
    call.begin()
    keys = [wait.call.key for wait in waits]
    chosen = call.succeeded({"which": which, "waits": keys})
    new.append(replace(chosen, started_at=known.started_at))
    await _record(call, new, closes=keys)
    return error


async def _record(
    call: StepCall,
    steps: Sequence[StepRecord],
    *,
    openings: Mapping[str, Opening] = NOTHING,
    closes: Sequence[str] = (),
) -> None:
    """Record steps, and open and close their waits, in one transaction."""
    services, context = call.services, call.context
    for step in steps:
        context.writing(step.key, opens_wait=bool(openings))
    claim = context.claimed.claim
    cancelled = await durable(
        context,
        lambda: services.journal.record_waits(
            claim, steps, openings=openings, closes=closes, now=services.now()
        ),
    )
    if cancelled:
        host_of(call).tell_cancelled(cancelled)


def _chosen() -> dict[str, Any]:
    raise NotImplementedError


_FIRST: Task[dict[str, Any]] = Task(function=_chosen, name="first", retry=RetryPolicy())
