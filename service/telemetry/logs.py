"""Logging: records from `log`, `logging`, `structlog`, warnings and `print`, each naming its run.

A record is a noun.verb message (`order.charged`) and keyword fields; inside a run the fields
`flow run attempt trigger event tenant` are added automatically. The records of a run are also
stored with its attempts as JSON Lines, the last ones where there are too many; a first line says
how many were dropped.

Not here: what a line looks like (`log_lines`); log files, rotation, shipping, which the supervisor
of the process does better.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Literal, TextIO
from weakref import WeakSet

import orjson

from turnout.service.domain.units import utc_now
from turnout.service.governance import secrets

from .log_lines import MAX_FIELD, Fields, as_json, as_text, record_of
from .streams import real_stderr, taken_by

Format = Literal["auto", "json", "console"]

MAX_LINES = 200
MAX_BYTES = 64 * 1024

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_NAMES = {number: name for name, number in _LEVELS.items()}


class RunLog:
    """The log of one attempt: the fields its records carry, and the lines stored with it."""

    __slots__ = ("__weakref__", "_bytes", "_lines", "dropped", "fields", "is_used", "partials")

    def __init__(self, fields: Callable[[], Fields]) -> None:
        self.fields = fields  # called for a record: most runs write none
        self.is_used = False
        self.partials: dict[str, str] = {}  # what was printed of a line, by stream
        self.dropped = 0
        self._lines: list[bytes] = []
        self._bytes = 0
        if "structlog" in sys.modules and _sink.adopts:
            _adopt_structlog()  # a flow file imported it after `configure`

    def keep(self, line: bytes) -> None:
        """Store a line; past the bound the first ones are dropped for it, and counted."""
        self.is_used = True
        lines = self._lines
        if not lines:
            with _lock:
                _in_use.add(self)
        lines.append(line)
        self._bytes += len(line)
        while len(lines) > MAX_LINES or self._bytes > MAX_BYTES:
            self._bytes -= len(lines.pop(0))
            self.dropped += 1

    def take_print(self, name: str, text: str) -> None:
        """Write the lines of what was printed; the last one waits for its end."""
        self.is_used = True
        *lines, rest = (self.partials.get(name, "") + text).split("\n")
        if len(rest) > MAX_FIELD:  # no line end in sight: memory is not for it
            lines.append(rest)
            rest = ""
        self.partials[name] = rest
        for line in lines:
            _write_print(self, name, line)

    def end_lines(self) -> None:
        """Write the lines that were printed without their end."""
        partials, self.partials = self.partials, {}
        for name, line in partials.items():
            _write_print(self, name, line)

    @property
    def lines(self) -> Sequence[bytes]:
        """The stored lines so far, each a JSON document."""
        return tuple(self._lines)

    def forget(self) -> None:
        """Drop the stored lines."""
        self.as_bytes()
        self._lines, self._bytes, self.dropped, self.is_used = [], 0, 0, False

    def as_bytes(self) -> bytes | None:
        """Return the stored lines as JSON Lines, or None when nothing was logged."""
        self.end_lines()
        with _lock:
            _in_use.discard(self)
        lines = self._lines
        if self.dropped:
            truncated = {"level": "warning", "message": "log.truncated", "dropped": self.dropped}
            lines = [as_json(truncated), *lines]
        return b"".join(lines) or None


_lock = threading.Lock()  # a thread's first line comes while another one looks
_in_use: WeakSet[RunLog] = WeakSet()
"""The logs of attempts that have written something and have not ended."""


def logs_in_use() -> list[RunLog]:
    """Return the logs of attempts that are under way and have written something."""
    with _lock:
        found = list(_in_use)
    return [log for log in found if log.fields()]


running: ContextVar[RunLog | None] = ContextVar("turnout_running_log", default=None)
"""The log of the attempt whose code is running in this context."""


def _run_here() -> RunLog | None:
    """Return the log of the attempt that the calling code works for."""
    return running.get() or _sink.call


_steps: list[Callable[[], str | None]] = []


def tells_step(ask: Callable[[], str | None]) -> None:
    """Register the function that returns the key of the running step."""
    _steps[:] = [ask]


class Logger:
    """Writes records: a noun.verb message and keyword fields, `log.info("order.charged", id=7)`."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Fields) -> None:
        self._fields = fields

    def bind(self, **fields: object) -> Logger:
        """Return a logger that adds these fields to every record."""
        return Logger({**self._fields, **fields})

    def debug(self, message: str, /, **fields: object) -> None:
        """Write a record for developers."""
        if _sink.level <= 10:
            _sink.write("debug", message, {**self._fields, **fields})

    def info(self, message: str, /, **fields: object) -> None:
        """Write a record of something normal."""
        if _sink.level <= 20:
            _sink.write("info", message, {**self._fields, **fields})

    def warning(self, message: str, /, **fields: object) -> None:
        """Write a record of something to look at."""
        if _sink.level <= 30:
            _sink.write("warning", message, {**self._fields, **fields})

    def error(self, message: str, /, **fields: object) -> None:
        """Write a record of something that went wrong."""
        if _sink.level <= 40:
            _sink.write("error", message, {**self._fields, **fields})

    def exception(self, message: str, /, **fields: object) -> None:
        """Write an error record with the exception being handled."""
        self.error(message, exc_info=sys.exc_info()[1], **fields)


def get_logger(name: str = "") -> Logger:
    """Return a logger; it is cheap, and `configure` applies to those made before too."""
    return Logger({"logger": name} if name else {})


# ---------------------------------------------------------------- where records go


class _Sink:
    """Where all records of the process go."""

    def __init__(self) -> None:
        self.level = _LEVELS["info"]
        self.format: Format = "auto"
        self.stream: TextIO | None = None
        self.now: Callable[[], datetime] = utc_now
        self.forward: Callable[[bytes], None] | None = None
        self.call: RunLog | None = None  # in a worker process, whose threads all work for one call
        self.adopts = False

    def write(self, level: str, message: str, fields: Fields) -> None:
        record = record_of(self.now(), level, message, fields)
        if self.forward is not None:
            self.forward(as_json(record))
        else:
            self.emit(record)

    def emit(self, record: Fields) -> None:
        run = running.get()
        for ask in _steps if run is not None else ():
            if (step := ask()) is not None:
                record.setdefault("step", step)
        stream = self.stream or real_stderr()
        context = {} if run is None else run.fields()
        try:
            stream.write(self._line(record, context, stream))
            stream.flush()
        except (ValueError, OSError):  # closed, or nobody reads it: a log must not stop a run
            pass
        if run is not None:
            run.keep(as_json(record))

    def _line(self, record: Fields, context: Fields, stream: TextIO) -> str:
        readable = self.format == "console" or (self.format == "auto" and stream.isatty())
        if readable:
            return as_text(record, context)
        merged = {**record, **context}
        for name in context.keys() & record.keys():
            merged[f"{name}_"] = record[name]  # people search by the run's fields
        return as_json(merged).decode()


_sink = _Sink()


def configure(
    format: Format = "auto",
    level: str = "info",
    stream: TextIO | None = None,
    *,
    now: Callable[[], datetime] = utc_now,
) -> Callable[[], None]:
    """Send all records to `stream` (standard error), adopting what else writes some.

    `logging`, `structlog`, warnings and errors of threads everywhere, and what a run prints.
    Returns a function that undoes all of it.
    """
    before = (_sink.format, _sink.level, _sink.stream, _sink.now)
    _sink.format, _sink.level, _sink.now = format, _LEVELS[level], now
    _sink.stream = None if stream is None else _raw(stream)
    root = logging.getLogger()
    handler, root_level = _StandardHandler(), root.level
    for old in [each for each in root.handlers if isinstance(each, _StandardHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    # Libraries' debug chatter is theirs; ours is asked for by name.
    root.setLevel(max(_sink.level, logging.INFO))
    _sink.adopts = True
    if "structlog" in sys.modules:
        _adopt_structlog()
    stdout = sys.stdout
    proxy = sys.stdout = _PrintProxy(_raw(stdout))
    taken_by(_take_error)
    hooks = warnings.showwarning, threading.excepthook
    warnings.showwarning, threading.excepthook = _show_warning, _thread_failed

    def undo() -> None:
        _sink.format, _sink.level, _sink.stream, _sink.now = before
        _sink.adopts = False
        root.removeHandler(handler)
        root.setLevel(root_level)
        if sys.stdout is proxy:
            sys.stdout = stdout
        if warnings.showwarning is _show_warning:
            warnings.showwarning = hooks[0]
        threading.excepthook = hooks[1]

    return undo


def level() -> int:
    """Return the level below which records are dropped, in the numbers of `logging`."""
    return _sink.level


@contextmanager
def forwarded(level: int, forward: Callable[[bytes], None]) -> Iterator[None]:
    """In a worker process: pass the records of a call to `forward`, for `replay` in the service."""
    undo = configure()
    run = RunLog(dict)
    token = running.set(run)
    _sink.level, _sink.forward, _sink.call = level, forward, run
    try:
        yield
    finally:
        run.end_lines()
        running.reset(token)
        _sink.forward = _sink.call = None
        undo()


def replay(line: bytes) -> None:
    """Write a record from a worker process as one of the run that called it."""
    _sink.emit(orjson.loads(line))


_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {
    "message", "asctime", "taskName", "color_message",
}  # fmt: skip
"""What every record of `logging` has; the rest is `extra=`."""


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Write a warning as a record, in the place of `warnings.showwarning`."""
    if file is not None:
        file.write(warnings.formatwarning(message, category, filename, lineno, line))
    elif _sink.level <= _LEVELS["warning"]:
        where = {"category": category.__name__, "location": f"{filename}:{lineno}"}
        _sink.write("warning", str(message), {"logger": "warnings", **where})


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    """Write the error that has ended a thread, in the place of `threading.excepthook`."""
    if args.exc_type is not SystemExit:
        name = None if args.thread is None else args.thread.name
        log = get_logger("turnout")
        log.error("thread.failed", thread=name, exc_info=args.exc_value)


class _StandardHandler(logging.Handler):
    """Writes the records of the `logging` module."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit the format
            message = f"{record.msg} {record.args}"
        fields: Fields = {"logger": record.name}
        fields |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.stack_info:
            fields["stack"] = record.stack_info
        if record.exc_info and record.exc_info[1] is not None:
            fields["exc_info"] = record.exc_info[1]
        level = max((number for number in _NAMES if number <= record.levelno), default=10)
        if level >= _sink.level:
            _sink.write(_NAMES[level], message, fields)


def _adopt_structlog() -> None:
    """Let `structlog.get_logger()` in a flow file write the same records.

    Only where an author uses structlog: its import takes 150 ms and 12 MB.
    """
    import structlog

    _sink.adopts = False

    def write(_logger: Any, method: str, event: Any) -> Any:
        fields = dict(event)
        message = str(fields.pop("event", ""))
        level = "error" if method == "exception" else method
        if _LEVELS.get(level, 20) >= _sink.level:
            _sink.write(level if level in _LEVELS else "info", message, fields)
        raise structlog.DropEvent

    structlog.configure(processors=[write], cache_logger_on_first_use=False)


class _PrintProxy(io.TextIOBase):
    """Standard output: what a run prints becomes records, everything else is passed on."""

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw

    def write(self, text: str, /) -> int:
        run = _run_here()
        if run is None:
            return self.raw.write(secrets.mask(text))
        run.take_print("print", text)
        return len(text)

    def flush(self) -> None:
        self.raw.flush()

    def isatty(self) -> bool:
        return self.raw.isatty()

    def fileno(self) -> int:
        return self.raw.fileno()

    def writable(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)  # encoding, buffer, …


def _take_error(text: str) -> bool:
    """Take what a run prints to standard error; everything else is passed on."""
    run = _run_here()
    if run is not None:
        run.take_print("stderr", text)
    return run is not None


def _write_print(run: RunLog, name: str, line: str) -> None:
    if line.strip() and _sink.level <= _LEVELS["info"]:
        token = running.set(run)
        try:
            _sink.write("info", line, {"logger": name})
        finally:
            running.reset(token)


def _raw(stream: TextIO) -> TextIO:
    return stream.raw if isinstance(stream, _PrintProxy) else stream
