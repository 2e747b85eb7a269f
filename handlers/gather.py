"""`gather`: run several awaitables at once, each branch in a scope of its own.

The typed twin of `asyncio.gather` for flows: after a restart every branch finds its own recorded
steps again. Results come as a tuple in the order given. The first error ends the other branches
and is raised as itself; with `return_exceptions=True` every branch runs to its end.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Coroutine
from typing import Any, Literal, TypeVar, overload

from turnout.service.domain.errors import Exited
from turnout.service.steps.approval import Asked
from turnout.service.steps.branches import Branches, rerun_branches
from turnout.service.steps.scope import Scope, here
from turnout.service.steps.suspension import Suspend, suspend_with
from turnout.service.steps.unawaited import to_await

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")
T6 = TypeVar("T6")
E = Exception


# fmt: off
@overload
def gather(a: Awaitable[T1], /, *, return_exceptions: Literal[False] = ...) -> Coroutine[object, None, tuple[T1]]: ...  # noqa: E501  one line per arity reads best
@overload
def gather(a: Awaitable[T1], b: Awaitable[T2], /, *, return_exceptions: Literal[False] = ...) -> Coroutine[object, None, tuple[T1, T2]]: ...  # noqa: E501  one line per arity reads best
@overload
def gather(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], /, *, return_exceptions: Literal[False] = ...) -> Coroutine[object, None, tuple[T1, T2, T3]]: ...  # noqa: E501  one line per arity reads best
@overload
def gather(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], d: Awaitable[T4], /, *, return_exceptions: Literal[False] = ...) -> Coroutine[object, None, tuple[T1, T2, T3, T4]]: ...  # noqa: E501  one line per arity reads best
@overload
def gather(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], d: Awaitable[T4], e: Awaitable[T5], /, *, return_exceptions: Literal[False] = ...) -> Coroutine[object, None, tuple[T1, T2, T3, T4, T5]]: ...  # noqa: E501  one line per arity reads best
@overload
def gather(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], d: Awaitable[T4], e: Awaitable[T5], f: Awaitable[T6], /, *, return_exceptions: Literal[False] = ...) -> Coroutine[object, None, tuple[T1, T2, T3, T4, T5, T6]]: ...  # noqa: E501  one line per arity reads best
@overload
def gather(a: Awaitable[T1], /, *, return_exceptions: Literal[True]) -> Coroutine[object, None, tuple[T1 | E]]: ...  # noqa: E501  one line per arity reads best
@overload
def gather(a: Awaitable[T1], b: Awaitable[T2], /, *, return_exceptions: Literal[True]) -> Coroutine[object, None, tuple[T1 | E, T2 | E]]: ...  # noqa: E501  one line per arity reads best
@overload
def gather(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], /, *, return_exceptions: Literal[True]) -> Coroutine[object, None, tuple[T1 | E, T2 | E, T3 | E]]: ...  # noqa: E501  one line per arity reads best
@overload
def gather(*branches: Awaitable[T], return_exceptions: Literal[False] = ...) -> Coroutine[object, None, tuple[T, ...]]: ...  # noqa: E501  one line per arity reads best
@overload
def gather(*branches: Awaitable[T], return_exceptions: Literal[True]) -> Coroutine[object, None, tuple[T | E, ...]]: ...  # noqa: E501  one line per arity reads best
# fmt: on
def gather(
    *branches: Awaitable[Any], return_exceptions: bool = False
) -> Coroutine[object, None, tuple[Any, ...]]:
    """Await calls of tasks, flows and waits at once; returns their results in the order they stand.

    The steps of a branch are recorded under its number, so the same branch resumes its own steps. A
    branch that waits lets the others run to their own end or wait first.

    * `branches`: what is awaited: any number of calls that were not awaited yet
    * `return_exceptions`: `True` returns an error instead of its branch's result

    Raises the first error of a branch, recorded like a step's; the other branches are cancelled.

    ```python
    from turnout import flow, gather, task


    @task
    async def price(item: str) -> int:
        return len(item)


    @flow
    async def total(items: list[str]) -> int:
        return sum(await gather(*(price(each) for each in items)))
    ```
    """
    try:
        scope = here("gather")
    except BaseException:
        _close(branches)
        raise
    numbered = None if scope is None else Branches(scope, "gather")
    known = None if numbered is None else numbered.recall()
    if numbered is not None and known is not None:
        return to_await(_gather_again(branches, numbered, known), "gather")
    return to_await(_gather(branches, numbered, return_exceptions), "gather")


async def _gather(
    branches: tuple[Awaitable[Any], ...], numbered: Branches | None, return_exceptions: bool
) -> tuple[Any, ...]:
    async def branch(index: int, awaitable: Awaitable[Any]) -> Any:
        if numbered is not None:
            scopes.append(numbered.enter(index))
        try:
            return await awaitable
        except Suspend:  # it waits; the other branches first run to their own end or wait
            return None
        except (SystemExit, KeyboardInterrupt) as error:
            raise Exited.of(error) from None
        except Exception as error:
            if return_exceptions:
                return error
            raise

    scopes: list[Scope] = []
    try:
        async with asyncio.TaskGroup() as group:
            running = [
                group.create_task(branch(index, each)) for index, each in enumerate(branches)
            ]
            if numbered is not None:
                numbered.split(running)
    except BaseExceptionGroup as failed:
        errors = failed.exceptions
    else:
        suspend_with(scopes)
        return tuple(task.result() for task in running)
    finally:
        _close(branches)
    raise errors[0] if numbered is None else numbered.failed(errors)


async def _gather_again(
    branches: tuple[Awaitable[Any], ...], numbered: Branches, known: BaseException
) -> tuple[Any, ...]:
    """Run the branches to the end of their recorded steps, then raise their recorded error."""

    async def branch(index: int, awaitable: Awaitable[Any]) -> None:
        numbered.enter(index)
        await awaitable

    try:
        await rerun_branches(branch(index, each) for index, each in enumerate(branches))
    finally:
        _close(branches)
    raise known


def _close(branches: tuple[Awaitable[Any], ...]) -> None:
    """Close coroutines that were cancelled before their first step."""
    for each in branches:
        if inspect.iscoroutine(each) or isinstance(each, Asked):
            each.close()
