"""Masks secrets in what is written to standard output and error beside the log.

`sys.stderr` masks what Python code writes, warnings and tracebacks included. Once a secret has been
revealed, everything else that writes to the two streams (a child process, a library in C) goes
through a pipe to a thread that masks it; a child that outlives the service can then write no more.
Lines that come in parts stay whole beside those of other writers: an unfinished one waits a second
for its end. A terminal is left alone: programs behave differently on one, and what it shows is not
stored. Not here: log records, which are masked where they are made (`logs`).
"""

from __future__ import annotations

import atexit
import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TextIO

from turnout.service.governance import secrets

_READ_BYTES = 65_536
_LINE_SECONDS = 1.0
"""How long an unfinished line is held back, so that lines of several writers stay whole."""
_LAST_SECONDS = 0.2
"""How long the process waits at its end for what is still in the pipe."""


_takers: list[Callable[[str], bool]] = []


def taken_by(take: Callable[[str], bool]) -> None:
    """Offer what Python code writes to standard error to `take`, which says whether it took it."""
    _takers[:] = [take]


class _MaskedStream(io.TextIOBase):
    """Standard error for Python code: masks, and writes around the pipe, so nothing is delayed."""

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw
        self.direct = raw
        if _leads_to(raw, 2):
            self.direct = os.fdopen(
                os.dup(2), "w", buffering=1, encoding=raw.encoding, errors="backslashreplace"
            )

    def write(self, text: str, /) -> int:
        if not any(take(text) for take in _takers):
            self.direct.write(secrets.mask(text))
        return len(text)

    def flush(self) -> None:
        self.raw.flush()
        self.direct.flush()

    def isatty(self) -> bool:
        return self.direct.isatty()

    def fileno(self) -> int:
        return self.raw.fileno()  # for child processes

    def writable(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)  # encoding, buffer, …


class _Pipe:
    """A pipe between a stream's descriptor and its target, with a thread that masks."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._real = os.dup(number)
        self._reader, writer = os.pipe()
        os.dup2(writer, number)
        os.close(writer)
        self._held = b""  # an unfinished line
        self._handling = threading.Lock()
        self._thread = threading.Thread(target=self._pass, name="turnout-stream", daemon=True)
        self._thread.start()

    def _pass(self) -> None:
        incoming = select.poll()
        incoming.register(self._reader, select.POLLIN)
        until: float | None = None
        while True:
            if until is not None and not incoming.poll(max(0.0, until - time.monotonic()) * 1000):
                self._write_held()
                until = None
            chunk = os.read(self._reader, _READ_BYTES)
            if not chunk:
                break
            with self._handling:
                masked, beginning = secrets.mask_bytes(self._held + chunk)
                end = _end_of_lines(masked)
                self._write(masked[:end])
                self._held = masked[end:] + beginning
            if not self._held:
                until = None
            elif end or until is None:
                until = time.monotonic() + _LINE_SECONDS

    def _write_held(self) -> None:
        with self._handling:
            masked, self._held = secrets.mask_bytes(self._held)
            self._write(masked)

    def _write(self, data: bytes) -> None:
        with suppress(OSError):  # nobody reads it any more
            while data:
                data = data[os.write(self._real, data) :]

    def close(self) -> None:
        """Restore the descriptor, after what was written has gone through."""
        os.dup2(self._real, self._number)
        self._thread.join(_LAST_SECONDS)
        # A child may still hold the other end, or nobody read what the thread writes.
        if self._handling.acquire(timeout=_LAST_SECONDS):
            self._write(self._held)
            self._held = b""
            self._handling.release()


def _end_of_lines(text: bytes) -> int:
    """Return where the unfinished line at the end begins: a progress bar ends its lines with CR."""
    if len(text) > _READ_BYTES:
        return len(text)
    return max(text.rfind(b"\n"), text.rfind(b"\r")) + 1


_pipes: list[_Pipe] = []
_diverting = threading.Lock()


def protect() -> None:
    """Mask what leaves this process by its standard streams, until it ends."""
    if isinstance(sys.stderr, _MaskedStream):
        return
    sys.stderr = _MaskedStream(sys.stderr)
    secrets.listen(_divert)
    atexit.register(_restore)
    if secrets.live_forms:
        _divert({})


def real_stderr() -> TextIO:
    """Return standard error without the pipe, for code that is about to end the process."""
    return sys.stderr.direct if isinstance(sys.stderr, _MaskedStream) else sys.stderr


def _divert(_revealed: Mapping[str, str]) -> None:
    with _diverting:
        if _pipes:
            return
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            stream.flush()
            if _leads_to(stream, number) and not os.isatty(number):
                _pipes.append(_Pipe(number))
                if hasattr(stream, "raw"):  # a wrapper from here or from `logs`
                    stream.raw = _reopened(stream.raw, number)


def _leads_to(stream: TextIO, number: int) -> bool:
    """Whether a stream writes to a descriptor; a replaced stream may not."""
    try:
        return stream.fileno() == number
    except (OSError, ValueError):  # it has none
        return False


def _reopened(stream: TextIO, number: int) -> TextIO:
    """Return a new stream on the descriptor, which now is a pipe and cannot seek."""
    return os.fdopen(
        number, "w", encoding=stream.encoding, errors=stream.errors, closefd=False, buffering=1
    )


def _restore() -> None:
    with suppress(ValueError, OSError):
        sys.stdout.flush()
    while _pipes:
        _pipes.pop().close()
