"""Where functions run: `async def` on the loop, `def` in a thread or in a worker process.

Threads and processes are bounded. A call ends when its work has ended: a thread cannot be killed,
so a timed-out or cancelled call comes back only when the thread has returned (decision 21); a
worker process is killed. A worker that dies fails its own call only. A pool thread acts for the
asyncio task that waits for it: `caller()` names that task on both sides.

Not here: recording anything, and retries.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib
import inspect
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError as ThreadCancelled
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, TypeVar

from . import logs
from .errors import NotKept, TurnoutError
from .flow import Pool
from .loader import PACKAGE, load_file

T = TypeVar("T")

Lane = Literal["flow", "step"]
"""Steps have threads of their own: flows that hold every thread can still run their steps."""

Travel = Callable[[], "tuple[Callable[..., None], tuple[Any, ...]] | None"]
_travels: list[Travel] = []


def travels(snapshot: Travel) -> None:
    """Register what goes along to a worker process: `snapshot()` returns (restore, arguments)."""
    _travels.append(snapshot)


class WorkerDied(TurnoutError):
    """Raised when the worker process of a call ended before the call did."""


class WorkerError(TurnoutError):
    """Stands in for an error of a worker process that cannot travel; the message names its type."""


class Pools:
    """The threads and worker processes of one service; made lazily, bounded always."""

    def __init__(self, threads: int, processes: int) -> None:
        self._threads: dict[Lane, ThreadPoolExecutor] = {
            lane: ThreadPoolExecutor(threads, thread_name_prefix=f"turnout-{lane}")
            for lane in ("flow", "step")
        }
        count = processes or os.cpu_count() or 1
        self._slots = asyncio.Semaphore(count)
        self._exchanges = ThreadPoolExecutor(count, thread_name_prefix="turnout-worker")
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []
        # Before multiprocessing's own exit function, which would wait for workers to end.
        atexit.register(self.close)

    async def call(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        pool: Pool = "thread",
        timeout_seconds: float | None = None,
        name: str = "",
        lane: Lane = "flow",
    ) -> Any:
        """Run a function where it belongs and return what it returns.

        Raises `TimeoutError` naming `name` past `timeout_seconds`, once the work has really ended.
        """
        if timeout_seconds is None:
            return await self._run(function, args, kwargs, pool, name, lane)
        limit = asyncio.timeout(timeout_seconds)
        try:
            async with limit:
                return await self._run(function, args, kwargs, pool, name, lane)
        except TimeoutError as error:
            if not limit.expired():
                raise  # the function's own
            raise TimeoutError(
                f"{name or _name(function)} did not end within its timeout of {timeout_seconds:g}s"
            ) from error

    async def _run(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        pool: Pool,
        name: str,
        lane: Lane,
    ) -> Any:
        if _is_async(function):
            return await function(*args, **kwargs)
        if pool == "process":
            return await self._in_process(function, args, kwargs, name or _name(function))
        return await _ThreadCall().run(self._threads[lane], function, args, kwargs)

    async def _in_process(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        name: str,
    ) -> Any:
        request = _request(function, args, kwargs, name)
        async with self._slots:
            answer = await self._exchange(request, name)
        return _answer(answer, name)

    async def _exchange(self, request: bytes, name: str) -> Any:
        worker = self._idle.pop() if self._idle else _Worker()
        self._workers.add(worker)
        work = self._exchanges.submit(worker.exchange, request)
        try:
            answer = await _until_done(work, worker.kill)
        except BaseException as error:
            worker.kill()
            self._workers.discard(worker)
            if isinstance(error, WorkerDied):
                raise WorkerDied(
                    f"the worker process of {name} ended before it did: {error}"
                ) from None
            raise
        self._idle.append(worker)
        return answer

    def close(self) -> None:
        """Kill the workers and let threads end; threads still at work are not waited for."""
        atexit.unregister(self.close)
        for worker in self._workers:
            worker.kill()
        self._idle.clear()
        for executor in (*self._threads.values(), self._exchanges):
            executor.shutdown(wait=False, cancel_futures=True)


def _is_async(function: Callable[..., Any]) -> bool:
    code = getattr(function, "__code__", None)
    if code is None:
        return inspect.iscoroutinefunction(function)
    return bool(code.co_flags & inspect.CO_COROUTINE)


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))


async def _until_done(work: Future[T], stop: Callable[[], None]) -> T:
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
            done.exception()  # seen: the cancel is what the caller gets
        raise cancelled
    return done.result()


# ---------------------------------------------------------------- threads


class _ThreadCall:
    """One function running in a pool thread, and the asyncio task that waits for it."""

    __slots__ = ("_pending", "_stopped", "loop", "task")

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.task = caller()
        self._pending: Future[Any] | None = None
        self._stopped = False

    async def run(
        self,
        executor: ThreadPoolExecutor,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        context = copy_context()

        def work() -> Any:
            _thread.call = self
            try:
                return context.run(function, *args, **kwargs)
            except StopIteration as error:  # a Future cannot carry it, and would hang
                raise RuntimeError("the function raised StopIteration") from error
            finally:
                _thread.call = None

        return await _until_done(executor.submit(work), self.stop)

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
        return asyncio.current_task()
    except RuntimeError:
        return None


def in_thread() -> bool:
    """Whether this is a pool thread, where waiting for the loop is allowed.

    Raises `CancelledError` once the thread's call was stopped: nobody waits for its work.
    """
    call = _thread.call
    if call is None:
        return False
    call.raise_if_stopped()
    return True


def on_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the loop and wait for it; from a pool thread only."""
    call = _thread.call
    if call is None:
        coroutine.close()
        raise RuntimeError("on_loop() is for pool threads")
    return call.wait_for(coroutine)


# ---------------------------------------------------------------- worker processes, our side

_spawn = multiprocessing.get_context("spawn")  # fork would copy the journal's open files and locks


class _Worker:
    """One worker process and its pipe; one call at a time."""

    def __init__(self) -> None:
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self._killed = False

    def exchange(self, request: bytes) -> Any:
        """Send a call and wait for its answer, in a thread; raises `WorkerDied`."""
        try:
            if self._pipe is None:
                self._pipe = self._start()
            self._pipe.send_bytes(request)
            return pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError) as error:
            self.kill()
            raise WorkerDied(self._ending(error)) from None

    def _start(self) -> Connection:
        ours, theirs = _spawn.Pipe()
        process = _spawn.Process(
            target=_serve_calls, args=(theirs, list(sys.path)), name="turnout-worker", daemon=True
        )
        process.start()
        theirs.close()  # so that the worker's end is the only one, and its death is an EOF here
        self._process = process
        if self._killed:  # while it was starting
            process.kill()
        return ours

    def kill(self) -> None:
        """End the process now; what waits in `exchange` gets `WorkerDied`."""
        self._killed = True
        if self._process is not None:
            self._process.kill()

    def _ending(self, error: Exception) -> str:
        if self._process is None:
            return f"it could not start ({error})"
        self._process.join(5)
        return f"exit code {self._process.exitcode}"


def _request(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], name: str
) -> bytes:
    file = None
    if function.__module__.startswith(f"{PACKAGE}."):
        file = sys.modules[function.__module__].__file__
    try:
        along = [state for state in (snapshot() for snapshot in _travels) if state is not None]
        # Two layers: the worker must load the flow file before it can read the arguments.
        inner = pickle.dumps((tuple(args), dict(kwargs), along), protocol=5)
    except Exception as error:  # noqa: BLE001  pickling runs the author's __reduce__
        raise NotKept(
            f"{name}: an argument cannot go to a worker process ({type(error).__name__}: {error}); "
            f"pass plain data, a path or an id instead"
        ) from None
    level = logs.level()
    return pickle.dumps((file, function.__module__, function.__qualname__, inner, level))


def _answer(answer: Any, name: str) -> Any:
    kind, content, detail, lines = answer
    for line in lines:
        logs.replay(line)
    if kind == "result":
        return pickle.loads(content)
    if kind == "unpicklable":
        raise NotKept(
            f"{name}: the result cannot come back from the worker process ({detail}); return "
            f"plain data, a path or an id instead"
        )
    if content is None:
        raise WorkerError(detail)
    error: BaseException = pickle.loads(content)
    error.add_note(f"In the worker process:\n{detail}")
    raise error


# ---------------------------------------------------------------- worker processes, their side

_versions: dict[str, int] = {}
"""Flow files this worker loaded, with their modification time: reload brings new code."""


def _serve_calls(pipe: Connection, path: list[str]) -> None:
    """Answer calls until the pipe closes; the main of a worker process."""
    # Ctrl-C and a supervisor's SIGTERM reach the whole group, while the service lets runs end.
    # Our own end is a closed pipe, or SIGKILL.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.path[:] = path
    while True:
        try:
            request = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        answer = _answer_to(request)
        with contextlib.suppress(BrokenPipeError):
            pipe.send_bytes(pickle.dumps(answer, protocol=5))


def _answer_to(request: bytes) -> tuple[str, bytes | None, str, list[bytes]]:
    file, module, qualname, inner, level = pickle.loads(request)
    with logs.collected(level) as lines:
        # A context of its own: what one call restores, the next must not find.
        kind, content, detail = copy_context().run(_perform, file, module, qualname, inner)
    return kind, content, detail, lines


def _perform(
    file: str | None, module: str, qualname: str, inner: bytes
) -> tuple[str, bytes | None, str]:
    try:
        function = _find(file, module, qualname)
        args, kwargs, along = pickle.loads(inner)
        for restore, state in along:
            restore(*state)
        value = function(*args, **kwargs)
    except BaseException as error:  # noqa: BLE001  the author's code; sys.exit() too is an answer
        return "error", _pickled_error(error), _described(error)
    try:
        return "result", pickle.dumps(value, protocol=5), ""
    except Exception as error:  # noqa: BLE001  pickling runs the author's __reduce__
        return "unpicklable", None, f"{type(error).__name__}: {error}"


def _find(file: str | None, module: str, qualname: str) -> Callable[..., Any]:
    if file is not None:
        changed = Path(file).stat().st_mtime_ns
        if _versions.setdefault(file, changed) != changed:
            sys.modules.pop(module, None)
            _versions[file] = changed
        found: Any = load_file(Path(file))
    else:
        found = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    # The name holds the decorated flow or task; the plain function is inside.
    function: Callable[..., Any] = (
        found if inspect.isfunction(found) else getattr(found, "function", found)
    )
    return function


def _pickled_error(error: BaseException) -> bytes | None:
    try:
        content = pickle.dumps(error, protocol=5)
        back = pickle.loads(content)
    except Exception:  # noqa: BLE001  an error with a constructor of its own often cannot travel
        return None
    return content if type(back) is type(error) else None


def _described(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).strip()
