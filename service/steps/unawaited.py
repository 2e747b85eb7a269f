"""Forgotten awaits: a flow or task that returns with an unfinished call is refused.

A call of an async task, of a flow or of `emit` does nothing until it is awaited, and one that runs
in an asyncio task of the author's would outlive the run, with effects nobody records. So each
coroutine that a call returns is remembered, with its line in the author's code, until it has ended.

Not here: forgotten awaits that the source shows (`project.unawaited`).
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from types import CodeType, CoroutineType
from typing import Any, NamedTuple, TypeVar

from turnout.service.domain.errors import NotAwaited
from turnout.service.domain.tracebacks import OWN_FOLDER

from .author_code import calling_frame
from .scope import Scope, current_scope

T = TypeVar("T")

_FEW = 64
_NAMED = 3


def to_await(
    coroutine: Coroutine[Any, Any, T], words: str, *, frames: int = 2
) -> Coroutine[Any, Any, T]:
    """Return `coroutine`; in a run it is remembered, named by `words`, until it has ended.

    The author's code is this many frames up, or further.
    """
    scope = current_scope.get()
    if scope is None:
        return coroutine
    if scope.step is not None:
        pending = scope.pending_calls
        if pending is None:
            pending = scope.pending_calls = PendingCalls(f"step {scope.step!r}")
        return pending.add(coroutine, words, frames + 1)
    return to_await_in_flow(scope, coroutine, words, frames=frames + 1)


def to_await_in_flow(
    scope: Scope, coroutine: Coroutine[Any, Any, T], words: str, *, frames: int
) -> Coroutine[Any, Any, T]:
    """Return `coroutine`, remembered as `to_await` does, of a call that is known to be a flow's."""
    context = scope.context
    pending = context.pending_calls
    if pending is None:
        pending = context.pending_calls = PendingCalls(f"flow {context.claimed.flow!r}")
    return pending.add(coroutine, words, frames + 1)


class _Pending(NamedTuple):
    """One pending call: its coroutine, and where it is in the author's code."""

    coroutine: Any  # a coroutine: the abstract type lacks its attributes
    words: str
    code: CodeType
    instruction: int

    def __str__(self) -> str:
        lines = [position[0] for position in self.code.co_positions()]
        at = self.instruction // 2
        line = lines[at] if 0 <= at < len(lines) else None
        return f"{self.words} at {self.code.co_filename}:{line or self.code.co_firstlineno}"

    @property
    def is_begun(self) -> bool:
        return inspect.getcoroutinestate(self.coroutine) != inspect.CORO_CREATED


class PendingCalls:
    """The calls of a flow or a step that returned a coroutine which may not have ended."""

    __slots__ = ("_calls", "_most", "_words")

    def __init__(self, words: str) -> None:
        self._words = words
        # The fields of `_Pending`: one tuple for each step, and hardly ever one in a message.
        self._calls: list[tuple[Any, str, CodeType, int]] = []
        self._most = _FEW

    def add(
        self, coroutine: Coroutine[Any, Any, T], words: str, frames: int
    ) -> Coroutine[Any, Any, T]:
        """Remember the coroutine of a call, named by `words`, and return it."""
        if type(coroutine) is not CoroutineType:
            return coroutine  # not a native coroutine: it has no state
        frame = sys._getframe(frames)
        if frame.f_code.co_filename.startswith(OWN_FOLDER):
            frame = calling_frame(frame)
        call = (coroutine, words, frame.f_code, frame.f_lasti)
        calls = self._calls
        if calls and calls[-1][0].cr_frame is None:
            calls[-1] = call  # of calls one after the other, only the last is kept
            return coroutine
        if len(calls) >= self._most:
            self._calls = calls = [each for each in calls if each[0].cr_frame is not None]
            self._most = max(_FEW, 2 * len(calls))
        calls.append(call)
        return coroutine

    def words_of(self, coroutine: object) -> str | None:
        """Return how the call that returned a coroutine is named, None if it is not known."""
        return next((each[1] for each in self._calls if each[0] is coroutine), None)

    @property
    def is_left(self) -> bool:
        """Whether a call has not ended."""
        for each in self._calls:  # noqa: SIM110  any() would cost a generator for each attempt
            if each[0].cr_frame is not None:
                return True
        return False

    def _left(self) -> list[_Pending]:
        return [_Pending(*each) for each in self._calls if each[0].cr_frame is not None]

    def refuse_arguments(
        self, step: object, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Raise `NotAwaited` if `step` gets a coroutine as an argument instead of its result."""
        if CoroutineType not in map(type, args) and (
            not kwargs or CoroutineType not in map(type, kwargs.values())
        ):
            return  # as nearly always
        for value in (*args, *kwargs.values()):
            for each in self._calls:
                if each[0] is value:
                    raise NotAwaited(
                        f"{step} is given {_Pending(*each)} itself, not its result: write "
                        f"`await` before the inner call too"
                    )

    def refuse_left(self) -> None:
        """Raise `NotAwaited` for a call that was never awaited or still runs."""
        if not self.is_left:
            return
        left = self._left()
        owners = _owners(left)
        forgotten = [
            each for each in left if id(each.coroutine) not in owners and not each.is_begun
        ]
        if forgotten:
            raise NotAwaited(
                f"{self._words} called what it did not await, so that it never ran: "
                f"{_listed(forgotten)}; write `await` before the call"
            )
        running = [each for each in left if not _is_cancelled(owners.get(id(each.coroutine)))]
        if running:
            raise NotAwaited(
                f"{self._words} returned while what it had called was not over, left in an asyncio "
                f"task: {_listed(running)}; await it, or all at once with `await gather(…)`"
            )

    async def see_through(self) -> None:
        """End all calls; raises `NotAwaited` as `refuse_left` does."""
        try:
            self.refuse_left()
        finally:
            await self.end(patiently=False)

    async def end(self, *, patiently: bool) -> None:
        """End all calls, without a warning of Python's; `patiently` lets them finish first."""
        left = self._left()
        owners = _owners(left)
        for each in left:
            if id(each.coroutine) not in owners and not each.is_begun:
                each.coroutine.close()
        tasks = set(owners.values())
        if not patiently:
            for task in tasks:
                task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()  # mark it as retrieved


def _is_cancelled(owner: asyncio.Task[Any] | None) -> bool:
    return owner is not None and owner.cancelling() > 0


def _listed(calls: list[_Pending]) -> str:
    named = ", ".join(map(str, calls[:_NAMED]))
    more = len(calls) - _NAMED
    return named if more <= 0 else f"{named} and {more} more"


def _owners(calls: Iterable[_Pending]) -> dict[int, asyncio.Task[Any]]:
    """Return the asyncio tasks that run calls, by the id of the coroutine."""
    pending = {id(each.coroutine) for each in calls}
    found: dict[int, asyncio.Task[Any]] = {}
    try:
        own = asyncio.current_task()
    except RuntimeError:
        return found  # a worker process has no loop
    for task in asyncio.all_tasks():
        inner: Any = None if task is own else task.get_coro()
        while inner is not None:
            if id(inner) in pending:
                found[id(inner)] = task
            inner = getattr(inner, "cr_await", None)
    return found
