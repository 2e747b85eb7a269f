"""Resources: what a process opens once and its flows share, such as a database pool.

An author writes a function that yields (or returns) the thing and decorates it with `@resource`;
a flow asks for it with `db: Annotated[Pool, database]`. Resources start with the service, before
any run, and stop after the last one. In a unit test the thing is simply passed.

Not here: resources of worker processes (they share nothing) and one resource using another.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

from .errors import FOREIGN, SetupError, message_of

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Resource(Generic[T]):
    """How to open one shared thing, and how to close it; the value stands in annotations."""

    function: Callable[[], object]
    name: str
    file: str
    line: int

    async def _enter(self, stack: AsyncExitStack) -> Any:
        function: Callable[[], Any] = self.function
        if inspect.isasyncgenfunction(function):
            return await stack.enter_async_context(asynccontextmanager(function)())
        if inspect.isgeneratorfunction(function):
            return stack.enter_context(contextmanager(function)())
        value = function()
        return await value if inspect.isawaitable(value) else value


@overload
def resource(function: Callable[[], AsyncIterator[T]], /) -> Resource[T]: ...
@overload
def resource(function: Callable[[], Iterator[T]], /) -> Resource[T]: ...
@overload
def resource(function: Callable[[], Awaitable[T]], /) -> Resource[T]: ...
@overload
def resource(function: Callable[[], T], /) -> Resource[T]: ...
def resource(function: Callable[[], object], /) -> Resource[Any]:
    """Declare a shared thing, such as a connection pool: a function that yields it, then closes it.

    It is opened once a process when the service starts, closed when it stops, and passed to each
    flow with a parameter `Annotated[T, RESOURCE]`. A function that returns it, without closing,
    will do.

    * `function`: takes no arguments; `async` or plain, which runs on the loop

    Raises `SetupError` for a function with parameters; the service does not start, naming file and
    line, when the function raises.

    ```python
    import sqlite3
    from collections.abc import Iterator
    from typing import Annotated

    from turnout import flow, resource


    @resource
    def database() -> Iterator[sqlite3.Connection]:
        opened = sqlite3.connect(":memory:", check_same_thread=False)
        yield opened
        opened.close()


    @flow
    def count(db: Annotated[sqlite3.Connection, database]) -> int:
        return int(db.execute("select 40 + 2").fetchone()[0])
    ```
    """
    code = getattr(function, "__code__", None)
    file, line = getattr(code, "co_filename", ""), getattr(code, "co_firstlineno", 0)
    name = getattr(function, "__name__", repr(function))
    if inspect.signature(function).parameters:
        raise SetupError(
            f"resource {name!r} takes parameters; read settings and secrets inside it instead",
            file=file,
            line=line,
        )
    return Resource(function, name, file, line)


class Resources:
    """The open resources of one process; started and stopped in the same task."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._open: dict[Resource[Any], Any] = {}
        self._turn = asyncio.Lock()

    async def start(self, resources: Iterable[Resource[Any]]) -> None:
        """Open those not open yet, in order; raises `SetupError` at the resource's file and line.

        When one fails, those opened here before it are closed again.
        """
        async with self._turn:
            opened, fresh = AsyncExitStack(), dict[Resource[Any], Any]()
            try:
                for each in resources:
                    if each not in self._open and each not in fresh:
                        fresh[each] = await _entered(each, opened)
            except BaseException:
                await opened.aclose()  # without the error, which is not theirs
                raise
            self._stack.push_async_exit(opened)
            self._open |= fresh

    async def use(self, resource: Resource[T]) -> T:
        """Return the thing, opened now if nobody has asked for it before."""
        await self.start([resource])
        return self.get(resource)

    def get(self, resource: Resource[T]) -> T:
        """Return the open thing; raises `SetupError` if the service did not start it."""
        try:
            value: T = self._open[resource]
        except KeyError:
            raise SetupError(
                f"resource {resource.name!r} is not started", file=resource.file, line=resource.line
            ) from None
        return value

    async def stop(self) -> None:
        """Close everything, the last opened first; all are closed even if one raises."""
        self._open.clear()
        await self._stack.aclose()


async def _entered(resource: Resource[Any], stack: AsyncExitStack) -> Any:
    try:
        return await resource._enter(stack)
    except FOREIGN as error:  # a resource is the author's code and may raise anything
        text = error.message if isinstance(error, SetupError) else _one_line(error)
        raise SetupError(
            f"resource {resource.name!r} did not start: {text}",
            file=resource.file,
            line=resource.line,
        ) from error


def _one_line(error: BaseException) -> str:
    text = " ".join(message_of(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
