"""Worker processes: where `pool="process"` runs, one call at a time each.

A worker loads the flow file as the service has it, under the same private name, and finds the
function by its qualified name; arguments, results and errors travel as pickles. What the function
logs or prints comes back as it is written, so that a killed call has its log too, and so do changes
of its metrics, and each secret it reveals, so that no value passes the service unguarded. A worker
that dies or is killed fails its own call only. It leads a process group, and whatever ends it (a
timeout, a crash, the end of the service) ends every process the call has started and that made no
session of its own. Where the kernel is short of memory it takes a worker first.

Not here: how many workers there are, and who waits for them (`pools`).
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from turnout.service.domain.condition import SOURCE
from turnout.service.domain.errors import FOREIGN, NotKept, SetupError, TurnoutError
from turnout.service.domain.portable import dumps, portable
from turnout.service.governance import secrets
from turnout.service.project.loader import PACKAGE, load_file
from turnout.service.telemetry import logs, own_metrics, streams

log = logs.get_logger("turnout.pools")

Restore = Callable[..., Callable[[], None]]
Travel = Callable[[], "tuple[Restore, tuple[Any, ...]] | None"]
_travels: list[Travel] = []

FunctionPath = tuple[str | None, bytes | None, str, str]
"""Where a function is: its flow file and that file's bytes (if it is of one), module and name."""


def travels(snapshot: Travel) -> None:
    """Register what goes along to a worker process: `snapshot()` returns (restore, arguments).

    What `restore` returns there is called when the work is done, and may raise in its place.
    """
    _travels.append(snapshot)


class WorkerDied(TurnoutError):
    """Raised when the worker process of a call ended before the call did."""


class WorkerError(TurnoutError):
    """Stands in for an error of a worker process that cannot travel; the message names its type."""


# ---------------------------------------------------------------- the service's side

_spawn = multiprocessing.get_context("spawn")  # fork would copy the journal's open files and locks


_LOOK_SECONDS = 1.0
"""How often a worker that gives no answer is looked at."""

_BEGUN, _RECORD, _SECRETS, _METRIC, _ANSWER = b"b", b"r", b"s", b"m", b"a"
"""What a message from a worker is, by its first byte."""


class Worker:
    """One worker process and its pipe; one call at a time, `calls` of them so far."""

    def __init__(self, memory_bytes: int) -> None:
        self.calls = 0
        self._memory_bytes = memory_bytes
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self._life: Connection | None = None
        self._killed = False

    def exchange(
        self,
        request: bytes,
        on_record: Callable[[bytes], object],
        begun: Callable[[], object] | None = None,
    ) -> Any:
        """Send a call and wait for its answer, in a thread; raises `WorkerDied`.

        `on_record` gets each log record; secrets the worker reveals are masked here too. `begun` is
        called when the function starts, once the worker has loaded it.
        """
        self.calls += 1
        try:
            if self._pipe is None:
                self._pipe = self._start()
            self._pipe.send_bytes(request)
            while (message := self._receive(self._pipe))[:1] != _ANSWER:
                if message[:1] == _BEGUN:
                    if begun is not None:
                        begun()
                elif message[:1] == _SECRETS:
                    secrets.remember(pickle.loads(message[1:]))
                elif message[:1] == _METRIC:
                    _count(message[1:])
                else:
                    on_record(message[1:])
            return pickle.loads(message[1:])
        except (EOFError, OSError) as error:
            raise WorkerDied(self._end_and_explain(error)) from None

    def _start(self) -> Connection:
        ours, theirs = _spawn.Pipe()
        their_life, self._life = _spawn.Pipe(duplex=False)
        process = _spawn.Process(
            target=_serve_calls,
            args=(theirs, their_life, list(sys.path), self._memory_bytes),
            name="turnout-worker",  # no daemon: that could have no children of its own
        )
        process.start()
        theirs.close()  # so that the worker's end is the only one, and its death is an EOF here
        their_life.close()
        self._process = process
        if self._killed:  # while it was starting
            process.kill()
        return ours

    def _receive(self, pipe: Connection) -> bytes:
        while not pipe.poll(_LOOK_SECONDS):
            # A child that it forked may hold the pipe open beyond its death.
            if not self._alive():
                raise EOFError
        return pipe.recv_bytes()

    def _alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    def kill(self) -> None:
        """End the process, and those it started, now; `exchange` then raises `WorkerDied`."""
        self._killed = True
        process = self._process
        if process is None or process.pid is None:
            return
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # it leads no group yet, or all are gone
            process.kill()

    def _end_and_explain(self, error: Exception) -> str:
        """Kill what is left of the worker and return how it ended."""
        process = self._process
        if process is None:
            return f"it could not start ({error})"
        process.join(_LOOK_SECONDS)
        code = process.exitcode
        self.kill()
        self._process = None  # its id may be another's from here on
        process.join(5)
        if code is None:
            return "it closed its pipe"
        if code >= 0:
            return f"exit code {code}"
        hint = ", as the kernel does when memory is short" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"


def _count(change: bytes) -> None:
    """Change a metric as a worker has asked; its flow file may be another version of ours."""
    try:
        own_metrics.apply(pickle.loads(change))
    except SetupError as error:
        log.warning("metric.refused", error=str(error))


def request_of(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], name: str
) -> bytes:
    """Return a call as bytes for a worker; raises `NotKept` naming `name`."""
    file = source = None
    if function.__module__.startswith(f"{PACKAGE}."):
        module = sys.modules[function.__module__]
        # The function's own file as it was, for a run that goes on with the code it began with.
        file, source = module.__file__, function.__globals__.get(SOURCE)
    try:
        along = [state for state in (snapshot() for snapshot in _travels) if state is not None]
        # Two layers: the worker must load the flow file before it can read the arguments.
        inner = dumps((tuple(args), dict(kwargs), along))
    except FOREIGN as error:  # pickling runs the author's __reduce__
        raise NotKept(
            f"{name}: an argument cannot go to a worker process ({type(error).__name__}: {error}); "
            f"pass plain data, a path or an id instead"
        ) from None
    level = logs.level()
    function_path = (file, source, function.__module__, function.__qualname__)
    return pickle.dumps(
        (function_path, inner, level, (secrets.secrets_folder(), secrets.revealed()))
    )


def value_of(answer: Any, name: str) -> Any:
    """Return or raise what a worker answered."""
    kind, content, detail = answer
    if kind == "result":
        return _result_of(content, detail, name)
    if kind == "unpicklable":
        raise _not_back(name, detail)
    if kind == "memory":
        raise MemoryError(
            f"{name} needs more memory than a worker process may take; raise process_memory, or "
            f"work on smaller parts"
        )
    error = None
    with contextlib.suppress(*FOREIGN):  # not picklable, or its class is gone
        error = None if content is None else pickle.loads(content)
    if not isinstance(error, BaseException):
        raise WorkerError(detail)
    with contextlib.suppress(*FOREIGN):  # a class that takes no attributes
        error.add_note(f"In the worker process:\n{detail}")
    raise error


def _result_of(content: bytes, kind: str, name: str) -> Any:
    """Read a result back; raises `NotKept` when it is not what the worker returned."""
    try:
        value = pickle.loads(content)
    except FOREIGN as error:  # unpickling runs the author's code
        raise _not_back(name, f"{type(error).__name__}: {error}") from None
    if type(value).__qualname__ != kind:
        raise _not_back(name, f"{kind} would come back as {type(value).__qualname__}")
    return value


def _not_back(name: str, why: str) -> NotKept:
    return NotKept(
        f"{name}: the result cannot come back from the worker process ({why}); return "
        f"plain data, a path or an id instead"
    )


# ---------------------------------------------------------------- the worker's side


def _serve_calls(pipe: Connection, life: Connection, path: list[str], memory_bytes: int) -> None:
    """Answer calls until the pipe closes; the main of a worker process."""
    os.setsid()
    # A supervisor's SIGTERM reaches every process, while the service lets runs end. Handled, not
    # ignored: what the author's code starts would ignore it too.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    threading.Thread(target=_end_with_service, args=(life,), daemon=True).start()
    _bound_memory(memory_bytes)
    sys.path[:] = path
    # Told before the value is used, so that the service knows it before anything that holds it.
    secrets.listen(lambda values: _send(pipe, _SECRETS, pickle.dumps(dict(values))))
    own_metrics.forward(lambda change: _send(pipe, _METRIC, pickle.dumps(change)))
    streams.protect()
    while True:
        try:
            request = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        function_path, inner, level, (folder, revealed) = pickle.loads(request)
        secrets.configure(folder)
        secrets.remember(revealed)
        with logs.forwarded(level, partial(_send, pipe, _RECORD)):
            # A context of its own: what one call restores, the next must not find.
            begun = partial(_send, pipe, _BEGUN, b"")
            answer = copy_context().run(_perform, function_path, inner, begun)
        try:
            _send(pipe, _ANSWER, pickle.dumps(answer, protocol=5))
        except MemoryError:
            _send(pipe, _ANSWER, pickle.dumps(_NO_MEMORY))


_sending = threading.Lock()  # the author's code may log in several threads


def _send(pipe: Connection, kind: bytes, content: bytes) -> None:
    with _sending, contextlib.suppress(BrokenPipeError):
        pipe.send_bytes(kind + content)


def _end_with_service(life: Connection) -> None:
    """End the whole group when the service is gone, however it went and whatever runs here."""
    with contextlib.suppress(EOFError, OSError):
        life.recv_bytes()
    os.killpg(0, signal.SIGKILL)


def _bound_memory(most_bytes: int) -> None:
    if not sys.platform.startswith("linux"):
        return  # macOS, for development: it has no limit that is kept
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    if most_bytes:
        # What is written to, not the address space: libraries reserve far more than they use.
        _, ceiling = resource.getrlimit(resource.RLIMIT_DATA)
        most = most_bytes if ceiling == resource.RLIM_INFINITY else min(most_bytes, ceiling)
        resource.setrlimit(resource.RLIMIT_DATA, (most, ceiling))


_NO_MEMORY = ("memory", None, "")


def _perform(
    function_path: FunctionPath, inner: bytes, begun: Callable[[], None]
) -> tuple[str, bytes | None, str]:
    try:
        function = _find(*function_path)
        args, kwargs, along = pickle.loads(inner)
        checks = [restore(*state) for restore, state in along]
        begun()
        value = function(*args, **kwargs)
        for check in checks:
            check()
    except MemoryError:
        return _NO_MEMORY
    except BaseException as error:  # noqa: BLE001  the author's code; sys.exit() too is an answer
        kept = portable(error)
        return "error", None if kept is None else kept.data, _described(error)
    try:
        return "result", dumps(value), type(value).__qualname__
    except MemoryError:
        return _NO_MEMORY
    except FOREIGN as error:  # pickling runs the author's __reduce__
        return "unpicklable", None, f"{type(error).__name__}: {error}"


def _find(file: str | None, source: bytes | None, module: str, qualname: str) -> Callable[..., Any]:
    if file is not None:
        found: Any = load_file(Path(file), source)
    else:
        found = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    # The name holds the decorated flow or task; the plain function is inside.
    function: Callable[..., Any] = (
        found if inspect.isfunction(found) else getattr(found, "function", found)
    )
    return function


def _described(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).strip()
