"""Large results, in files beside the journal that are named after their content.

A file is whole and synced before anything names it, so a row never names a file that a crash or a
power cut has taken. Equal results share one file. A file goes once no row names it; `hold` keeps
it while a row that will is on its way. Not here: which results are large, and the rows.
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

FOLDER = "results"
BATCH = 500
"""How many files are looked at under one lock."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class BlobStore:
    """The files of one data folder; its functions are for threads, not for the loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()
        self.used_bytes = 0

    def open(self) -> None:
        """Measure what is there, and drop what a crash left unfinished; for the one writer."""
        for path in self._folder.glob("*.part"):
            path.unlink()
        self.used_bytes = sum(path.stat().st_size for path in self._folder.glob("*/*"))

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Keep a file from `sweep` in the block, whether it is there yet or not."""
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
            # Also when another call has just written it, and is not as far as this yet.
            for folder in (path.parent, self._folder, self._folder.parent):
                _sync(folder)
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise JournalFull("the disk that holds large results is full") from None
            raise JournalBroken(f"a large result cannot be written: {error}") from error

    def read(self, name: str) -> bytes:
        """Return a file's content; raises `JournalError` when it is gone or not what it was."""
        path = self._path(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise JournalError(f"{path}, a recorded result, cannot be read: {error}") from None
        if name_of(data) != name:
            raise JournalError(f"{path}, a recorded result, is damaged; restore it from a backup")
        return data

    def names(self) -> list[str]:
        """Return the files there are."""
        return [path.name for path in self._folder.glob("*/*")]

    def sweep(self, connection: apsw.Connection, names: Sequence[str]) -> int:
        """Delete those of at most `BATCH` files that no row names; returns how many bytes.

        `connection` has no snapshot yet: a row written before the lock is taken must be seen.
        """
        with self._lock:
            free = [name for name in names if name not in self._held]
            kept = set(orjson.loads(connection.execute(_NAMED, (orjson.dumps(free).decode(),)).get))
            freed = 0
            for path in (self._path(name) for name in free if name not in kept):
                with suppress(FileNotFoundError):
                    freed += path.stat().st_size
                    path.unlink()
            self.used_bytes -= freed
        return freed

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / name


_NAMED = """
SELECT json_group_array(value) FROM json_each(?) WHERE EXISTS
(SELECT 1 FROM steps WHERE spilled = value) OR EXISTS (SELECT 1 FROM cache WHERE spilled = value)
"""


def name_of(data: bytes) -> str:
    """Return the name of the file that holds `data`."""
    return blake2b(data, digest_size=20).hexdigest()


def lost(connection: apsw.Connection) -> str | None:
    """Return which recorded results are not in their files any more, None when all are."""
    blobs = BlobStore(Path(connection.filename).parent)
    problems = []
    for (name,) in connection.execute(
        "SELECT spilled FROM steps WHERE spilled IS NOT NULL"
        " UNION SELECT spilled FROM cache WHERE spilled IS NOT NULL"
    ):
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
