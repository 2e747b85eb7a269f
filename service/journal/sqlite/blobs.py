"""Blobs: large results in files beside the journal, each named after its content.

A file is complete and synced before a row names it, so no crash or power cut leaves a row without
its file. Equal results share one file. A file is deleted once no row names it; `hold` protects it
while such a row is being written. Not here: which results are large, and the rows.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

import apsw
import orjson

from turnout.service.domain.errors import JournalBroken, JournalError, JournalFull

from .statements import load
from .values import dump

FOLDER = "results"
BATCH = 500
"""How many files are checked under one lock."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class BlobStore:
    """The blobs of one data folder; call it from threads, since it blocks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()
        self.used_bytes = 0

    def open(self) -> None:
        """Add up sizes, and delete files a crash left unfinished; only the writer calls this."""
        for path in self._folder.glob("*.part"):
            path.unlink()
        self.used_bytes = sum(path.stat().st_size for path in self._folder.glob("*/*"))

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Protect a file from `sweep` inside the block, even before it exists."""
        with self._lock:
            self._held[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._held[name] -= 1
                if not self._held[name]:
                    del self._held[name]

    def write(self, name: str, data: bytes) -> None:
        """Make the held file `name` durable; raises `JournalFull`, `JournalBroken`."""
        path = self._path(name)
        try:
            if not path.exists():
                for folder in (self._folder, path.parent):
                    folder.mkdir(mode=0o700, exist_ok=True)
                _write(path, data)
                with self._lock:
                    self.used_bytes += len(data)
            # Even if the file exists: another call may not have synced its folders yet.
            for folder in (path.parent, self._folder, self._folder.parent):
                _sync(folder)
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise JournalFull("the disk that holds large results is full") from None
            raise JournalBroken(f"a large result cannot be written: {error}") from error

    def read(self, name: str) -> bytes:
        """Return a file's content; raises `JournalError` when it is missing or damaged."""
        path = self._path(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise JournalError(f"{path}, a recorded result, cannot be read: {error}") from None
        if name_of(data) != name:
            raise JournalError(f"{path}, a recorded result, is damaged; restore it from a backup")
        return data

    def names(self) -> list[str]:
        """Return the names of all files."""
        return [path.name for path in self._folder.glob("*/*")]

    def sweep(self, connection: apsw.Connection, names: Sequence[str]) -> int:
        """Delete the files among at most `BATCH` that no row names; returns how many bytes.

        `connection` must not have a snapshot yet, so that it sees rows written until the lock is
        taken.
        """
        with self._lock:
            free = [name for name in names if name not in self._held]
            found = connection.execute(_SQL["named_blobs"], (dump(free),)).get
            named = set(orjson.loads(found))
            freed = 0
            for path in (self._path(name) for name in free if name not in named):
                with suppress(FileNotFoundError):
                    freed += path.stat().st_size
                    path.unlink()
            self.used_bytes -= freed
        return freed

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / name


_SQL = load("reads")


def name_of(data: bytes) -> str:
    """Return the name of the file that holds `data`."""
    return blake2b(data, digest_size=20).hexdigest()


def lost(connection: apsw.Connection) -> str | None:
    """Return which recorded results have lost their files, None when none has."""
    blobs = BlobStore(Path(connection.filename).parent)
    problems = []
    for (name,) in connection.execute(_SQL["all_blobs"]):
        try:
            blobs.read(name)
        except JournalError as error:
            problems.append(str(error))
    return "; ".join(problems[:5]) or None


def _write(path: Path, data: bytes) -> None:
    descriptor, unfinished = tempfile.mkstemp(dir=path.parent.parent, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        Path(unfinished).replace(path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
