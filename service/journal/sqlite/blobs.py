"""Blobs: large results and artefacts in files beside the journal, each named after its content.

A file is complete and synced before a row names it, so no crash or power cut leaves a row without
its file. Equal results share one file. A file is deleted once no row names it; `hold` protects it
while such a row is being written. Not here: which results are large, the rows, and content that is
still being written (`staging`).
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

import apsw
import orjson

from turnout.service.domain.errors import JournalBroken, JournalError, JournalFull

from .files import NO_SPACE
from .migrations import sync
from .statements import load
from .values import dump

FOLDER = "results"
CHUNK_BYTES = 2**20
BATCH = 500
"""How many files are checked under one lock."""


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
        path = self.path(name)
        with _told_by_errors():
            if not path.exists():
                for folder in (self.folder(), path.parent):
                    folder.mkdir(mode=0o700, exist_ok=True)
                _write(path, data)
                self._grown(len(data))
            self._sync_folders(path)

    def adopt(self, part: Path, name: str) -> None:
        """Make a written file the held one `name`, durably; may be called again after an error.

        Raises what `write` does.
        """
        path = self.path(name)
        with _told_by_errors():
            if part.exists():
                if path.exists():
                    part.unlink()
                else:
                    sync(part)
                    path.parent.mkdir(mode=0o700, exist_ok=True)
                    size = part.stat().st_size
                    part.replace(path)
                    self._grown(size)
            elif not path.exists():
                raise JournalError(f"{path}, a result to be recorded, is gone")
            self._sync_folders(path)

    def _sync_folders(self, path: Path) -> None:
        """Sync the folders of a file, even of one there was: who wrote it may not have done so."""
        for folder in (path.parent, self._folder, self._folder.parent):
            sync(folder)

    def _grown(self, by: int) -> None:
        with self._lock:
            self.used_bytes += by

    def folder(self) -> Path:
        """Return the folder of all files, which is made if it is missing."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return self._folder

    def read(self, name: str) -> bytes:
        """Return a file's content; raises `JournalError` when it is missing or damaged."""
        return b"".join(self.chunks(name))

    def chunks(self, name: str) -> Generator[bytes, None, None]:
        """Yield a file's content in parts; raises as `read`, before the last part at the latest."""
        path, digest, last = self.path(name), new_digest(), b""
        try:
            with path.open("rb") as file:
                while part := file.read(CHUNK_BYTES):
                    digest.update(part)
                    if last:
                        yield last
                    last = part
        except OSError as error:
            raise JournalError(f"{path}, a recorded result, cannot be read: {error}") from None
        if digest.hexdigest() != name:
            raise JournalError(f"{path}, a recorded result, is damaged; restore it from a backup")
        yield last

    def names(self) -> list[str]:
        """Return the names of all files."""
        return [path.name for path in self._folder.glob("*/*")]

    def sweep(self, connection: apsw.Connection, names: Sequence[str]) -> int | None:
        """Delete the files among at most `BATCH` that no row names; returns how many bytes.

        None, and nothing is deleted, while a backup is made: rows that it holds may name them.
        `connection` must not have a snapshot yet, so that it sees rows written until the lock is
        taken.
        """
        with self._lock, self._no_backup() as is_free:
            if not is_free:
                return None
            free = [name for name in names if name not in self._held]
            found = connection.execute(_SQL["named_blobs"], (dump(free),)).get
            named = set(orjson.loads(found))
            freed = 0
            for path in (self.path(name) for name in free if name not in named):
                with suppress(FileNotFoundError):
                    freed += path.stat().st_size
                    path.unlink()
            self.used_bytes -= freed
        return freed

    @contextmanager
    def _no_backup(self) -> Iterator[bool]:
        """Keep a backup from being begun inside the block; whether none is under way."""
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False
        finally:
            os.close(descriptor)

    def path(self, name: str) -> Path:
        """Return where a file is."""
        return self._folder / name[:2] / name


_SQL = load("reads")


def name_of(data: bytes) -> str:
    """Return the name of the file that holds `data`."""
    digest = new_digest()
    digest.update(data)
    return digest.hexdigest()


def new_digest() -> blake2b:
    """Return what makes the name of content that comes in parts."""
    return blake2b(digest_size=20)


def lost(connection: apsw.Connection) -> str | None:
    """Return which recorded results have lost their files, None when none has."""
    blobs = BlobStore(Path(connection.filename).parent)
    problems = []
    for (name,) in connection.execute(_SQL["all_blobs"]):
        try:
            for _ in blobs.chunks(name):
                pass
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


@contextmanager
def _told_by_errors() -> Iterator[None]:
    """Raise `JournalFull` or `JournalBroken` for what the operating system refuses inside."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise JournalFull("the disk that holds large results is full") from None
        raise JournalBroken(f"a large result cannot be written: {error}") from error
