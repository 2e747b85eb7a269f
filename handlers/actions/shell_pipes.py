"""The pipes of a command, served by one thread: what comes is handed on, what is given is written.

Not here: what the pipes are for (`shell_command`).
"""

from __future__ import annotations

import os
import selectors
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import IO

_PART_BYTES = 64 * 1024
_MOST_SECONDS = 24 * 3600.0
"""How long a selector is asked to wait at most: it takes no month."""


class Stop:
    """Asks a command to end, from another thread; `wakes` is readable then."""

    def __init__(self) -> None:
        self.wakes, self._asks = os.pipe()
        os.set_blocking(self._asks, False)
        self._lock = threading.Lock()
        self._is_closed = False

    def ask(self) -> None:
        """Ask it."""
        with self._lock:
            if not self._is_closed:
                os.write(self._asks, b".")

    def close(self) -> None:
        """Close the pipe; nothing asks after that."""
        with self._lock:
            self._is_closed = True
            os.close(self.wakes)
            os.close(self._asks)


class Pipes:
    """Pipes that are read and written as they can be, without blocking; closed with their stack."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._selector = stack.enter_context(selectors.DefaultSelector())
        self._reading: set[int] = set()
        self._writing: dict[int, tuple[bytearray, bool]] = {}

    def make(self) -> tuple[IO[bytes], IO[bytes]]:
        """Make a pipe, and return the end to read and the one to write."""
        read, write = os.pipe()
        return (
            self._stack.enter_context(os.fdopen(read, "rb", buffering=0)),
            self._stack.enter_context(os.fdopen(write, "wb", buffering=0)),
        )

    def read(self, file: IO[bytes], take: Callable[[bytes], None]) -> None:
        """Hand what comes to `take`, until the pipe ends."""
        os.set_blocking(file.fileno(), False)
        self._reading.add(file.fileno())
        self._selector.register(file, selectors.EVENT_READ, take)

    def wake(self, descriptor: int, woken: Callable[[], None]) -> None:
        """Call `woken` once a descriptor is readable; whether it is does not count as open."""

        def once(_: bytes) -> None:
            self._selector.unregister(descriptor)
            woken()

        self._selector.register(descriptor, selectors.EVENT_READ, once)

    def write(self, file: IO[bytes], data: bytes, *, closes: bool = False) -> None:
        """Write this after what is still to be written; then the pipe is closed, if it `closes`."""
        os.set_blocking(file.fileno(), False)
        left, _ = self._writing.setdefault(file.fileno(), (bytearray(), closes))
        left += data
        with suppress(KeyError):  # it is being written already
            self._selector.register(file, selectors.EVENT_WRITE)

    @property
    def are_open(self) -> bool:
        """Whether anything may still come."""
        return bool(self._reading)

    def serve(self, seconds: float | None, failed: Callable[[Exception], None]) -> None:
        """Serve what is ready, waiting that long for it; an error of a taker is `failed`."""
        for key, _ in self._selector.select(seconds and min(seconds, _MOST_SECONDS)):
            if key.events == selectors.EVENT_WRITE:
                self._write_more(key.fileobj)  # type: ignore[arg-type]  # as it was registered
            elif key.fd not in self._reading:
                key.data(b"")
            else:
                self._read_more(key, failed)

    def _read_more(self, key: selectors.SelectorKey, failed: Callable[[Exception], None]) -> None:
        try:
            data = os.read(key.fd, _PART_BYTES)
        except BlockingIOError:
            return
        if not data:
            file: IO[bytes] = key.fileobj  # type: ignore[assignment]  # as it was registered
            self._selector.unregister(file)
            self._reading.discard(key.fd)
            file.close()
            return
        try:
            key.data(data)
        except Exception as error:  # noqa: BLE001  a full disk, a secret: raised when it has ended
            failed(error)

    def _write_more(self, file: IO[bytes]) -> None:
        left, closes = self._writing[file.fileno()]
        try:
            del left[: os.write(file.fileno(), bytes(left[:_PART_BYTES]))]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it reads no more, which is its own affair
            left.clear()
        if not left:
            self._selector.unregister(file)
            if closes:
                file.close()
