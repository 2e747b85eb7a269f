"""Reading connections in a few threads, so that no read waits for a write.

A read sees whole transactions only, and works with the service running or down. Each read has its
own snapshot: two calls may see different moments.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import apsw

from turnout.service.domain.errors import JournalError

from .blobs import BlobStore
from .connection import damaged, open_beside_writer, open_for_reading, translate

_THREADS = 4
_Value = TypeVar("_Value")


class Reading:
    """Runs queries, each inside a snapshot of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._blobs = BlobStore(folder)
        self._local = threading.local()
        self._at_once: apsw.Connection | None = None
        self._connections: list[apsw.Connection] = []
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="turnout-reader")

    async def read(self, query: Callable[[apsw.Connection], _Value]) -> _Value:
        """Run `query` on a reading thread, inside one snapshot."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._read, query)

    def _read(self, query: Callable[[apsw.Connection], _Value]) -> _Value:
        connection: apsw.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = open_for_reading(self._folder)
            self._connections.append(connection)
        return _in_snapshot(connection, query)

    def read_at_once(self, query: Callable[[apsw.Connection], _Value]) -> _Value:
        """Run a query that takes microseconds on the loop itself, with a connection of its own."""
        if self._at_once is None:
            self._at_once = open_beside_writer(self._folder)
            self._connections.append(self._at_once)
        return _in_snapshot(self._at_once, query)

    def read_here(self, query: Callable[[apsw.Connection], _Value]) -> _Value:
        """Run a query that takes microseconds in the calling thread, on the loop too."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._read(query)
        return self.read_at_once(query)

    async def close(self) -> None:
        """Release files."""
        self._threads.shutdown(wait=False)
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)
        while self._connections:
            self._connections.pop().close()

    async def read_blob(self, name: str) -> bytes:
        """Return a large result; raises `JournalError` when it is gone or damaged."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._blobs.read, name)

    def blob_path(self, name: str) -> Path:
        """Return where stored content is, to be read only."""
        return self._blobs.path(name)

    def blob_chunks(self, name: str) -> Generator[bytes, None, None]:
        """Yield stored content in parts; blocks."""
        return self._blobs.chunks(name)


def _in_snapshot(connection: apsw.Connection, query: Callable[[apsw.Connection], _Value]) -> _Value:
    try:
        connection.execute("BEGIN")
        try:
            return query(connection)
        finally:
            if connection.in_transaction:
                connection.execute("COMMIT")
    except apsw.Error as error:
        raise translate(error, connection) from error
    except UnicodeDecodeError as error:  # stored text that is not UTF-8
        raise JournalError(damaged(connection.filename, error.reason)) from error
