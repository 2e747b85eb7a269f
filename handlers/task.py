"""`@task`: a function whose calls inside a run are recorded steps.

`async def` makes an `AsyncTask`, `def` a `SyncTask`; a type checker knows what each call returns.
A sync task is called plainly in a `def` flow and as `await process.run(x)` in an `async def` one.
Outside a run every form just calls the function.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable
from datetime import timedelta
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Protocol, TypeVar, cast, overload

from turnout.service import pools
from turnout.service.domain.errors import MisplacedTask, SetupError
from turnout.service.domain.flow import Pool
from turnout.service.domain.retry import RetryPolicy
from turnout.service.domain.task import NO_FALLBACK, CachePolicy, Task
from turnout.service.domain.units import parse_timeout
from turnout.service.flowcontrol.limit import Limit
from turnout.service.steps import in_thread, mapping
from turnout.service.steps.author_code import where
from turnout.service.steps.mapping import Results
from turnout.service.steps.scope import here
from turnout.service.steps.step import StepCall, call_task
from turnout.service.steps.unawaited import to_await
from turnout.service.steps.undo import check as check_undo

MAX_NAME_CHARACTERS = 200

P = ParamSpec("P")
Q = ParamSpec("Q")
A = TypeVar("A")
R = TypeVar("R", covariant=True)
S = TypeVar("S")


class AsyncTask(Task[R], Generic[P, R]):
    """An `async def` task: `await charge(order)` is one recorded step of the run around it."""

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, R]:
        """Assign the step's key now; run the step when awaited."""
        step = call_task(self, args, kwargs)
        if step is None:
            return to_await(self.function(*args, **kwargs), self.words)
        return step

    def map(
        self: AsyncTask[Concatenate[A, Q], S], items: Iterable[A], *, limit: int = 8
    ) -> Coroutine[object, None, list[S]]:
        """Run the task for every item, at most `limit` at once; a step each, results in order.

        The first error ends the others and is raised. At most 10,000 items.
        """
        branches, listed = mapping.place_map(self, items, limit)
        return to_await(mapping.map_items(self, branches, listed, limit), f"{self.words}.map")


class SyncTask(Task[R], Generic[P, R]):
    """A `def` task: a plain call in a `def` flow, `await task.run(…)` in an `async def` one."""

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one step and return its result; in the flow's own thread."""
        scope = here(self.name)
        value: R
        if scope is None:
            value = self.function(*args, **kwargs)
            return value
        self._refuse_loop()
        value = in_thread.run(StepCall(self, scope, scope.next_key(self.name), args, kwargs))
        return value

    def run(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, R]:
        """In an `async def` flow: `await label.run(order)` runs the step in its pool.

        The step's key is assigned when it is called.
        """
        step = call_task(self, args, kwargs)
        if step is None:
            return to_await(_call_plainly(self.function, args, kwargs), self.words)
        return step

    def map(
        self: SyncTask[Concatenate[A, Q], S], items: Iterable[A], *, limit: int = 8
    ) -> Results[S]:
        """Run the task for every item, `limit` threads at once; a step each, results in order.

        Its results are a list in a `def` flow, and awaited in an `async def` one:
        `await label.map(orders, limit=4)`. The first error ends the others and is raised. At most
        10,000 items.
        """
        branches, listed = mapping.place_map(self, items, limit)
        if branches is None:
            return mapping.Results(self.function(item) for item in listed)
        working = mapping.map_items(self, branches, listed, limit)
        results: Any
        if pools.in_thread():
            results = pools.on_loop(working)
        else:
            results = to_await(working, f"{self.words}.map")
        return cast("Results[S]", results)

    def _refuse_loop(self) -> None:
        if not pools.in_thread():
            raise MisplacedTask(
                f"task {self.name!r}, called at {where()}, is not async and would block the "
                f"service; in an `async def` flow write `await {self.name}.run(…)`"
            )


async def _call_plainly(
    function: Callable[..., S], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> S:
    return function(*args, **kwargs)


class TaskDecorator(Protocol):
    """What `@task(...)` returns: makes the right kind of task of the function below it."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, S]], /) -> AsyncTask[P, S]: ...  # type: ignore[overload-overlap]  # async first: a coroutine function is also a function
    @overload
    def __call__(self, function: Callable[P, S], /) -> SyncTask[P, S]: ...


class ProcessTaskDecorator(Protocol):
    """What `@task(pool="process", ...)` returns: processes run plain functions only."""

    def __call__(self, function: Callable[P, S], /) -> SyncTask[P, S]:
        """Make a task."""


@overload
def task(function: Callable[P, Coroutine[Any, Any, S]], /) -> AsyncTask[P, S]: ...  # type: ignore[overload-overlap]  # async first: a coroutine function is also a function
@overload
def task(function: Callable[P, S], /) -> SyncTask[P, S]: ...
@overload
def task(
    *,
    name: str | None = ...,
    retry: RetryPolicy | int | None = ...,
    timeout: str | timedelta | None = ...,
    pool: Literal["thread"] = ...,
    fallback: object = ...,
    cache: CachePolicy | None = ...,
    undo: Callable[..., Any] | None = ...,
    limit: Limit | None = ...,
    reads: bool = ...,
) -> TaskDecorator: ...
@overload
def task(
    *,
    name: str | None = ...,
    retry: RetryPolicy | int | None = ...,
    timeout: str | timedelta | None = ...,
    pool: Literal["process"],
    fallback: object = ...,
    cache: CachePolicy | None = ...,
    undo: Callable[..., Any] | None = ...,
    limit: Limit | None = ...,
    reads: bool = ...,
) -> ProcessTaskDecorator: ...
def task(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    retry: RetryPolicy | int | None = None,
    timeout: str | timedelta | None = None,
    pool: Pool = "thread",
    fallback: object = NO_FALLBACK,
    cache: CachePolicy | None = None,
    undo: Callable[..., Any] | None = None,
    limit: Limit | None = None,
    reads: bool = False,
) -> Any:
    """Make calls of a function recorded steps: `@task`, or `@task(retry=retry(3), timeout="30s")`.

    In a run, a call whose result is recorded never runs again, over retries and restarts: it
    returns what it returned, or raises what it raised. One that was cut off before that runs again,
    with the same `current().key()`. What has effects, or may answer differently next time, is a
    task. Outside a run a call is a plain call. The result is kept exactly, or the step fails by
    name; at most `max_result_bytes` (a setting), larger than 64 KiB in a file beside the journal.

    * `name`: the task's name, if it is not the function's; it is part of the key of its steps
    * `retry`: how often a failed step is tried again: a number, or `retry(3, delay="1s")`; none by
      default. Tries belong to the run's attempt; a wait of more than 5 s gives the run's slot back
    * `timeout`: how long one try may take, such as `"30s"`; no bound by default
    * `pool`: where a `def` task runs: `"thread"`, or `"process"` for CPU-bound work on plain data,
      which a timeout or too much memory ends without harm to anything else
    * `fallback`: a value, or a function of the error, that gives the result once retries are
      exhausted; a `Fail` has no fallback
    * `cache`: `by_input(ttl="1h")` uses the result of an earlier call with equal input, in any run
    * `undo`: the function that undoes a step when its run fails for good or is cancelled, the last
      step first, from its first try on: also one that failed or was cut off. It is filled by name:
      with the step's arguments, `result` (None where there is none) and `key`, the step's
      `current().key()`
    * `limit`: `limit("crm", 3)` takes one of three slots for each try, shared by every task and
      flow that names it; waiting for it is no part of `timeout`
    * `reads`: true for a task that changes nothing: `turnout run --dry-run` calls it

    Raises `SetupError` for what cannot be a task; a call in the wrong place raises `MisplacedTask`.

    ```python
    from turnout import Fail, current, flow, gather, retry, task


    async def refund(order: str, result: str | None, key: str) -> None: ...  # give it back


    @task(retry=retry(3, delay="1s", on=OSError), timeout="30s", undo=refund)
    async def charge(order: str) -> str:
        return f"receipt-{order}-{current().key('charge')[:4]}"


    @task
    def label(order: str) -> str:
        if not order:
            raise Fail("an order has a number")  # not tried again
        return order.upper()


    @flow
    async def bill(order: str) -> list[str]:
        receipt, text = await gather(charge(order), label.run(order))
        return [receipt[:10], text]
    ```
    """

    def decorate(function: Callable[..., Any]) -> Any:
        return _make(
            function, name=name, retry=retry, timeout=timeout, pool=pool, fallback=fallback,
            cache=cache, undo=undo, limit=limit, reads=reads,
        )  # fmt: skip

    return decorate if function is None else decorate(function)


def _make(
    function: Callable[..., Any],
    *,
    name: str | None,
    retry: RetryPolicy | int | None,
    timeout: str | timedelta | None,
    pool: Pool,
    fallback: object,
    cache: CachePolicy | None,
    undo: Callable[..., Any] | None,
    limit: Limit | None,
    reads: bool,
) -> Task[Any]:
    refuse_unusable(function, "task", pool)
    kind = AsyncTask if inspect.iscoroutinefunction(function) else SyncTask
    code = function.__code__
    try:
        if undo is not None:
            check_undo(undo, function)
        seconds = parse_timeout(timeout)
        made: Task[Any] = kind(
            function=function,
            name=checked_name(function.__name__ if name is None else name),
            retry=retry_policy(retry),
            timeout_seconds=None if seconds is None else seconds.total_seconds(),
            pool=pool,
            fallback=_fallback(fallback),
            cache=_cache(cache),
            undo=undo,
            limit=_shared(limit),
            reads=_reads(reads, undo),
            file=code.co_filename,
            line=code.co_firstlineno,
        )
    except SetupError as error:
        raise SetupError(
            f"task {name or function.__name__!r}: {error.message}",
            file=code.co_filename,
            line=code.co_firstlineno,
        ) from None
    copy_metadata(made, function)
    return made


def _cache(cache: Any) -> CachePolicy | None:
    if cache is None or isinstance(cache, CachePolicy):
        return cache
    raise SetupError(f'cache={cache!r}: write cache=by_input(ttl="1h")')


def _fallback(fallback: Any) -> Any:
    if inspect.isfunction(fallback):
        try:
            inspect.signature(fallback).bind(None)
        except TypeError:
            raise SetupError(
                "fallback= is called with the error: fallback=lambda error: …, or give the value "
                "itself"
            ) from None
    return fallback


def _reads(reads: Any, undo: object) -> bool:
    if type(reads) is not bool:
        raise SetupError(f"reads={reads!r}: write reads=True for a task that changes nothing")
    if reads and undo is not None:
        raise SetupError("reads=True: what changes nothing needs no undo=; leave one of them out")
    return reads


def _shared(limit: Any) -> Limit | None:
    if limit is None or (isinstance(limit, Limit) and limit.name is not None):
        return limit
    given = limit.words if isinstance(limit, Limit) else repr(limit)
    raise SetupError(f'limit={given}: a task takes a limit with a name: limit=limit("crm", 3)')


def copy_metadata(made: object, function: Callable[..., Any]) -> None:
    """Give a flow or task its function's name, text and signature, for `help()` and editors."""
    for attribute in functools.WRAPPER_ASSIGNMENTS:
        vars(made)[attribute] = getattr(function, attribute)
    vars(made)["__wrapped__"] = function


def retry_policy(retry: object) -> RetryPolicy:
    """Return the policy `retry=` names: none, a count, or a policy."""
    if retry is None:
        return RetryPolicy()
    if isinstance(retry, RetryPolicy):
        return retry
    if isinstance(retry, int) and not isinstance(retry, bool) and retry >= 0:
        return RetryPolicy(count=retry)
    raise SetupError(f'retry={retry!r}: write retry=retry(3, delay="1s"), or a count')


def checked_name(name: Any) -> str:
    """Return the name of a flow or task; raises `SetupError` for one that cannot be shown."""
    if (
        not isinstance(name, str)
        or not name.isprintable()
        or not 0 < len(name) <= MAX_NAME_CHARACTERS
    ):
        raise SetupError(
            f"name={name!r:.80}: a name is 1 to {MAX_NAME_CHARACTERS} printable characters"
        )
    if name == "<lambda>":
        raise SetupError('a lambda has no name; write `def`, or give it one: name="…"')
    if name.startswith("~"):
        raise SetupError(f"name {name!r}: names that begin with ~ are turnout's own")
    return name


def refuse_unusable(function: object, kind: str, pool: str) -> None:
    """Raise `SetupError`, with file and line, for what cannot be a flow or a task."""
    if not inspect.isfunction(function):
        raise SetupError(f"@{kind} {_not_a_function(function, kind)}")
    problem = _problem_of(function, kind, pool)
    if problem is not None:
        code = function.__code__
        raise SetupError(
            f"{kind} {function.__name__!r} {problem}",
            file=code.co_filename,
            line=code.co_firstlineno,
        )


def _not_a_function(given: object, kind: str) -> str:
    """Return what is wrong with a decorator that stands on this, or is called with it."""
    if isinstance(given, str):
        return f"stands on a plain function; a name of its own is written @{kind}(name={given!r})"
    if hasattr(given, "check") and hasattr(given, "kind"):
        return f"takes its trigger by name: @{kind}(on={given.kind}(…))"
    if isinstance(given, staticmethod | classmethod):
        return f"stands on a plain function, not on a method; move it out of its class{_BELOW}"
    what = "a class" if isinstance(given, type) else type(given).__name__
    return f"stands on a plain function, not on {what}{_BELOW}"


_BELOW = "; write it directly above `def`, below other decorators"


def _problem_of(function: Any, kind: str, pool: str) -> str | None:
    """Return why a function cannot be a flow or task, in words that follow its name."""
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return f"yields; a {kind} returns one value, such as a list"
    if _is_method(function):
        return (
            f"is a method, and a {kind} is a plain function: move it out of its class, and give it "
            "what it needs of `self` as arguments"
        )
    if pool not in ("thread", "process"):
        return f'has pool={pool!r}: pool is "thread" or "process"'
    if pool == "process" and inspect.iscoroutinefunction(function):
        return 'is async; pool="process" runs plain `def` only'
    if pool == "process" and "<" in function.__qualname__:
        return (
            'has pool="process" and is defined inside a function, where a worker process cannot '
            "find it; define it at the top of the file"
        )
    return None


def _is_method(function: Callable[..., Any]) -> bool:
    owner = function.__qualname__.rpartition(".")[0]
    first = next(iter(inspect.signature(function).parameters), "")
    return first in ("self", "cls") and owner != "" and not owner.endswith("<locals>")
