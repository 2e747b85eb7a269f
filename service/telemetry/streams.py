"""Masks secrets in what is written to standard output and error beside the log.

`sys.stderr` masks what Python code writes, warnings and tracebacks included. Once a secret has been
revealed, everything else that writes to the two streams (a child process, a library in C) goes
through a pipe to a thread that masks it; a child that outlives the service can then write no more.
A terminal is left alone: programs behave differently on one, and what it shows is not stored. Not
here: log records, which are masked where they are made (`logs`).
"""

from __future__ import annotations

import atexit
import io
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TextIO

from turnout.service.governance import secrets

_READ_BYTES = 65_536
_LAST_SECONDS = 0.2
"""How long the process waits at its end for what is still in the pipe."""


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
        self._thread = threading.Thread(target=self._pass, name="turnout-stream", daemon=True)
        self._thread.start()

    def _pass(self) -> None:
        rest = b""
        while chunk := os.read(self._reader, _READ_BYTES):
            masked, rest = secrets.mask_bytes(rest + chunk)
            self._write(masked)
        self._write(rest)

    def _write(self, data: bytes) -> None:
        with suppress(OSError):  # nobody reads it any more
            while data:
                data = data[os.write(self._real, data) :]

    def close(self) -> None:
        """Restore the descriptor, after what was written has gone through."""
        os.dup2(self._real, self._number)
        self._thread.join(_LAST_SECONDS)


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
