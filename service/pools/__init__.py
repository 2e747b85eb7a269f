"""Where functions run: `async def` on the loop, `def` in a thread or in a worker process.

Threads and processes are bounded, and waiting for one spends none of a call's timeout. A call ends
when its work has ended: threads cannot be killed, so a timed-out or cancelled call returns only
when its thread has returned; a worker process is killed, with all processes it started. A worker
that dies fails its own call only. A worker is replaced after a number of calls, or when it runs out
of memory. A pool thread acts for the asyncio task that waits for it: `caller()` returns that task
in both.

Not here: recording anything, and retries.
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import os
import threading
import time
from asyncio import current_task
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError as ThreadCancelled
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, Literal, TypeVar

from turnout.service.domain.errors import Exited
from turnout.service.domain.flow import Pool
from turnout.service.telemetry import logs

from .limit import PoolCalls, TimeLimit
from .worker import Worker, WorkerDied, request_of, value_of

T = TypeVar("T")

WAIT_SECONDS = 1.0
"""How long a call waits for a pool before there is a warning."""

ThreadGroup = Literal["flow", "step"]
"""Steps have threads of their own, so flows that hold every flow thread can run their steps."""


class Pools:
    """The bounded threads and worker processes of one service, started when needed."""

    def __init__(
        self, threads: int, processes: int, *, process_memory: int = 0, process_calls: int = 100
    ) -> None:
        self._threads: dict[ThreadGroup, ThreadPoolExecutor] = {
            group: ThreadPoolExecutor(threads, thread_name_prefix=f"turnout-{group}")
            for group in ("flow", "step")
        }
        count = processes or os.cpu_count() or 1
        self._slots = asyncio.Semaphore(count)
        self._memory = process_memory
        self._most_calls = process_calls
        self._exchanges = ThreadPoolExecutor(count, thread_name_prefix="turnout-worker")
        self._workers: set[Worker] = set()
        self._idle: list[Worker] = []
        self._outdated: set[Worker] = set()
        self._calls: dict[str, PoolCalls] = {
            "flow threads": PoolCalls(threads),
            "step threads": PoolCalls(threads),
            "processes": PoolCalls(count),
        }
        self._late: set[TimeLimit] = set()
        self.steps = 0  # that run or are being recorded, here or on the loop
        # Before multiprocessing's own exit function, which would wait for workers to end.
        atexit.register(self.close)

    def call(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        pool: Pool = "thread",
        timeout_seconds: float | None = None,
        name: str = "",
        group: ThreadGroup = "flow",
    ) -> Coroutine[Any, Any, Any]:
        """When awaited, run a function where it belongs and return what it returns.

        Raises `TimeoutError` naming `name` past `timeout_seconds` from the call on the loop, and
        from the start of the function in a pool, once the work has really ended.
        """
        is_async = _is_async(function)
        if timeout_seconds is None:
            if is_async:
                work: Coroutine[Any, Any, Any] = function(*args, **kwargs)
                return work
            return self._run(function, args, kwargs, pool, name, group)
        limit = TimeLimit(timeout_seconds, name or _name(function), self._late)
        if is_async:
            return limit.on_loop(self._run(function, args, kwargs, pool, name, group))
        return limit.in_pool(self._run(function, args, kwargs, pool, name, group, limit.begun))

    async def _run(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        pool: Pool,
        name: str,
        group: ThreadGroup,
        begun: Callable[[], None] | None = None,
    ) -> Any:
        try:
            if _is_async(function):
                return await function(*args, **kwargs)
            if pool == "process":
                return await self._in_process(
                    function, args, kwargs, name or _name(function), begun
                )
            call = _ThreadCall(self._calls[f"{group} threads"], begun)
            return await call.run(self._threads[group], function, args, kwargs)
        except (SystemExit, KeyboardInterrupt) as error:
            raise Exited.of(error) from None

    async def _in_process(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        name: str,
        begun: Callable[[], None] | None,
    ) -> Any:
        request = request_of(function, args, kwargs, name)
        calls, call = self._calls["processes"], object()
        calls.enter(call, copy_context())
        try:
            async with self._slots:
                calls.begin(call)
                answer = await self._exchange(request, name, begun)
        finally:
            calls.leave(call)
        return value_of(answer, name)

    async def _exchange(self, request: bytes, name: str, begun: Callable[[], None] | None) -> Any:
        worker = self._idle.pop() if self._idle else Worker(self._memory)
        self._workers.add(worker)
        context = copy_context()  # the run whose log it is

        def on_record(record: bytes) -> None:
            context.run(logs.replay, record)

        work = self._exchanges.submit(worker.exchange, request, on_record, begun)
        try:
            answer = await until_done(work, worker.kill)
        except BaseException as error:
            worker.kill()
            self._workers.discard(worker)
            if isinstance(error, WorkerDied):
                raise WorkerDied(
                    f"the worker process of {name} ended before it did: {error}"
                ) from None
            raise
        spent = worker.calls >= self._most_calls or answer[0] == "memory"
        if spent or worker in self._outdated:
            worker.kill()
            self._workers.discard(worker)
            self._outdated.discard(worker)
        else:
            self._idle.append(worker)
        return answer

    @property
    def waiting(self) -> dict[str, int]:
        """How many calls wait for each pool."""
        return {name: calls.waiting for name, calls in self._calls.items()}

    @property
    def working(self) -> dict[str, int]:
        """How many calls have a slot of each pool."""
        return {name: calls.working for name, calls in self._calls.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """How many slots each pool has."""
        return {name: calls.size for name, calls in self._calls.items()}

    def waits_for(self, run_id: str) -> str | None:
        """Return, in words, the pool a run waits for, None if it waits for none."""
        for name, calls in self._calls.items():
            if calls.has_waiting(run_id):
                return f"one of the {calls.size} {name}, which are all busy"
        return None

    def warnings(self) -> dict[str, str]:
        """Return warnings about calls that wait or ignore their timeout, by topic."""
        told = {
            name: f"all {calls.size} {name} are busy; calls that wait for one: "
            f"{calls.waiting}, the first for {calls.longest_seconds:.0f}s"
            for name, calls in self._calls.items()
            if calls.longest_seconds > WAIT_SECONDS
        }
        if self._late:
            names = ", ".join(sorted({limit.name for limit in self._late}))
            told["timeouts"] = (
                f"calls that go on after their timeout: {len(self._late)}, of {names}"
            )
        return told

    def renew(self) -> None:
        """Replace the workers, for new code; busy ones end after their call."""
        for worker in self._idle:
            worker.kill()
            self._workers.discard(worker)
        self._idle.clear()
        self._outdated |= self._workers

    def close(self) -> None:
        """Kill the workers and let threads end; threads still at work are not waited for."""
        atexit.unregister(self.close)
        for worker in self._workers:
            worker.kill()
        self._idle.clear()
        for executor in (*self._threads.values(), self._exchanges):
            executor.shutdown(wait=False, cancel_futures=True)


def _is_async(function: Callable[..., Any]) -> bool:
    try:
        return function.__code__.co_flags & inspect.CO_COROUTINE != 0
    except AttributeError:  # a callable object
        return inspect.iscoroutinefunction(function)


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))


async def until_done(work: Future[T], stop: Callable[[], None]) -> T:
    """Wait for a thread's work to end, whatever happens; on the first cancel ask it to `stop`."""
    done = asyncio.wrap_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not done.done():
        try:
            await asyncio.wait((done,))
        except asyncio.CancelledError as error:
            if cancelled is None:
                stop()
                work.cancel()  # only work no thread has begun can still be called off
            cancelled = error
    if cancelled is not None:
        if not done.cancelled():
            done.exception()  # retrieved: the caller gets the cancel
        raise cancelled
    return done.result()


# ---------------------------------------------------------------- threads


class _ThreadCall:
    """One function running in a pool thread, and the asyncio task that waits for it."""

    __slots__ = ("_begun", "_calls", "_pending", "_stopped", "deadline", "loop", "task")

    def __init__(self, calls: PoolCalls, begun: Callable[[], None] | None) -> None:
        self._calls = calls
        self._begun = begun
        self.loop = asyncio.get_running_loop()
        self.task = caller()
        self._pending: Future[Any] | None = None
        self._stopped = False
        self.deadline: float | None = None

    async def run(
        self,
        executor: ThreadPoolExecutor,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        context = copy_context()

        def work() -> Any:
            self._calls.begin(self)
            _thread.call = self
            if self._begun is not None:
                self._begun()
            try:
                return context.run(function, *args, **kwargs)
            except StopIteration as error:  # a Future cannot carry it, and would hang
                raise RuntimeError("the function raised StopIteration") from error
            finally:
                _thread.call = None

        self._calls.enter(self, context)
        try:
            return await until_done(executor.submit(work), self.stop)
        finally:
            self._calls.leave(self)

    def wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """From the thread: run a coroutine on the loop; ends early when the call is stopped."""
        self._pending = pending = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        if self._stopped:
            pending.cancel()
        try:
            return pending.result()
        except ThreadCancelled:
            raise asyncio.CancelledError("the call was stopped") from None
        finally:
            self._pending = None

    @property
    def stopped(self) -> bool:
        """Whether nobody waits for the thread's work any more."""
        return self._stopped

    def raise_if_stopped(self) -> None:
        """Raise `CancelledError` once the call was stopped."""
        if self._stopped:
            raise asyncio.CancelledError("the call was stopped")

    def stop(self) -> None:
        """Cancel what the thread waits for, now and from now on."""
        self._stopped = True
        if self._pending is not None:
            self._pending.cancel()


class _Thread(threading.local):
    call: _ThreadCall | None = None


_thread = _Thread()


def caller() -> asyncio.Task[Any] | None:
    """Return the running asyncio task, or the one this pool thread works for, else None."""
    call = _thread.call
    if call is not None:
        return call.task
    try:
        return current_task()
    except RuntimeError:
        return None


def stopped() -> bool:
    """Whether nobody waits for what this pool thread does; False anywhere else."""
    call = _thread.call
    if call is None or call.stopped:
        return call is not None
    return call.deadline is not None and time.perf_counter() > call.deadline


@contextmanager
def told_after(seconds: float) -> Iterator[None]:
    """Let code in the block, in a pool thread, see `stopped` once its time is over."""
    call = _thread.call
    if call is not None:
        call.deadline = time.perf_counter() + seconds
    try:
        yield
    finally:
        if call is not None:
            call.deadline = None


def in_thread() -> bool:
    """Whether this is a pool thread, where waiting for the loop is allowed.

    Raises `CancelledError` once the thread's call was stopped: nobody waits for its work.
    """
    call = _thread.call
    if call is None:
        return False
    call.raise_if_stopped()
    return True


def call_soon(function: Callable[[], None]) -> None:
    """Have the loop call a function soon; from a pool thread only."""
    call = _thread.call
    if call is None:
        raise RuntimeError("call_soon() is for pool threads")
    call.loop.call_soon_threadsafe(function)


def on_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the loop and wait for it; from a pool thread only."""
    call = _thread.call
    if call is None:
        coroutine.close()
        raise RuntimeError("on_loop() is for pool threads")
    return call.wait_for(coroutine)
