"""Worker processes: where `pool="process"` runs, one call at a time each.

A worker loads the flow file by its path, under the same private name as the service, and finds the
function by its qualified name; arguments, results and errors travel as pickles. What the function
logs or prints comes back with the answer. A worker that dies or is killed fails its own call only;
it ends by itself when the service is gone.

Not here: how many workers there are, and who waits for them (`pools`).
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import multiprocessing
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from turnout.service import logs
from turnout.service.errors import NotKept, TurnoutError
from turnout.service.project.loader import PACKAGE, load_file

Travel = Callable[[], "tuple[Callable[..., None], tuple[Any, ...]] | None"]
_travels: list[Travel] = []


def travels(snapshot: Travel) -> None:
    """Register what goes along to a worker process: `snapshot()` returns (restore, arguments)."""
    _travels.append(snapshot)


class WorkerDied(TurnoutError):
    """Raised when the worker process of a call ended before the call did."""


class WorkerError(TurnoutError):
    """Stands in for an error of a worker process that cannot travel; the message names its type."""


# ---------------------------------------------------------------- the service's side

_spawn = multiprocessing.get_context("spawn")  # fork would copy the journal's open files and locks


class Worker:
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


def request_of(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], name: str
) -> bytes:
    """Return a call as bytes for a worker; raises `NotKept` naming `name`."""
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


def value_of(answer: Any, name: str) -> Any:
    """Return or raise what a worker answered, after logging what it logged."""
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


# ---------------------------------------------------------------- the worker's side

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
