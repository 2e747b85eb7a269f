"""The file of a backup: a tar archive of the database, then blobs, then a manifest.

Any tar can unpack it. The database is written and read where it is in the archive, through a file
system of SQLite that skips the header before it, so it is never copied twice. The manifest comes
last and has a digest of itself: a file that was cut off has none. Not here: what is put in
(`backups`), and what is made of it (`restoring`).
"""

from __future__ import annotations

import os
import re
import secrets
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import apsw
import orjson

from turnout.service.domain.errors import BackupError, JournalError

from .blobs import CHUNK_BYTES, FOLDER, new_digest
from .files import FILE_NAME

_HEADER_BYTES = 512
_MANIFEST = "manifest.json"
_BLOB = re.compile(r"[0-9a-f]{40}")


class _Inside(apsw.VFSFile):
    """The database in an archive: the bytes behind the header, `size` of them where that is set."""

    def __init__(self, path: str, flags: list[int], size: int | None) -> None:
        super().__init__("", path, flags)
        self._size = size

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802  SQLite's name
        return super().xRead(amount, offset + _HEADER_BYTES)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802  SQLite's name
        super().xWrite(data, offset + _HEADER_BYTES)

    def xFileSize(self) -> int:  # noqa: N802  SQLite's name
        if self._size is not None:
            return self._size
        return max(super().xFileSize() - _HEADER_BYTES, 0)

    def xTruncate(self, size: int) -> None:  # noqa: N802  SQLite's name
        super().xTruncate(size + _HEADER_BYTES)


class _InsideArchive(apsw.VFS):
    def __init__(self, name: str, size: int | None) -> None:
        super().__init__(name, "")
        self._size = size

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802  SQLite's name
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        return _Inside(path, flags, self._size)


@contextmanager
def _opened(
    path: Path, flags: int, *, size: int | None, asked: str = ""
) -> Iterator[apsw.Connection]:
    """Open the database in an archive; of these, one after the other is open."""
    name = f"turnout-archive-{secrets.token_hex(4)}"
    files = _InsideArchive(name, size)
    address = f"{path.absolute().as_uri()}{asked}"
    connection = apsw.Connection(address, flags=flags | apsw.SQLITE_OPEN_URI, vfs=name)
    try:
        yield connection
    finally:
        connection.close()
        files.unregister()


class ArchiveWriter:
    """Writes a new archive, mode 0600: first the database, then blobs, then the manifest."""

    def __init__(self, path: Path, taken_at: datetime) -> None:
        self.path = path
        self._taken_at = int(taken_at.timestamp())
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(descriptor, "r+b")
        self._file.write(bytes(_HEADER_BYTES))
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @contextmanager
    def database(self) -> Iterator[apsw.Connection]:
        """Open the empty database for writing; at the end of the block it is in the archive."""
        flags = apsw.SQLITE_OPEN_READWRITE
        with _opened(self.path, flags, size=None) as connection:
            connection.pragma("journal_mode", "off")  # a crash leaves a file that nobody counts
            connection.pragma("synchronous", "off")
            yield connection
        self._file.seek(0, os.SEEK_END)
        size = self._file.tell() - _HEADER_BYTES
        self._file.seek(0)
        self._file.write(self._member(FILE_NAME, size))
        self._file.seek(0, os.SEEK_END)
        self._pad(size)

    def add_blob(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        """Add a blob of this size; raises `BackupError` where it has another one.

        Where its content cannot be read or is damaged, which `chunks` raises, it is not added.
        """
        begin = self._file.seek(0, os.SEEK_END)
        try:
            self._add(f"{FOLDER}/{name[:2]}/{name}", size, chunks)
        except JournalError:
            self._file.seek(begin)
            self._file.truncate()
            raise

    def finish(self, facts: dict[str, Any]) -> None:
        """Add the manifest, which holds these facts and says how long the database is."""
        told = {"facts": facts, "digest": _digest_of(facts)}
        text = orjson.dumps(told, option=orjson.OPT_INDENT_2)
        self._add(_MANIFEST, len(text), [text])
        self._file.write(bytes(2 * _HEADER_BYTES))
        self._sync()

    def start_writing(self) -> None:
        """Have the system begin to write what was added, and keep it in no cache.

        It waits for nothing: an fsync of a file that grows holds up those of the journal.
        """
        self._file.flush()
        if sys.platform == "linux":
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def _sync(self) -> None:
        """Have on disk what was added."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def digest(self, after_each: Callable[[], None]) -> str:
        """Return the digest of what is in the archive so far, read in parts."""
        self._file.flush()
        digest = new_digest()
        with self.path.open("rb") as file:
            file.seek(_HEADER_BYTES)
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                after_each()
        return digest.hexdigest()

    def _add(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        self._file.write(self._member(name, size))
        written = 0
        for chunk in chunks:
            self._file.write(chunk)
            written += len(chunk)
        if written != size:
            raise BackupError(f"{name} has {written} bytes and had {size}: try again")
        self._pad(size)

    def _pad(self, size: int) -> None:
        self._file.write(bytes(-size % _HEADER_BYTES))

    def _member(self, name: str, size: int) -> bytes:
        member = tarfile.TarInfo(name)
        member.size, member.mode, member.mtime = size, 0o600, self._taken_at
        return member.tobuf(tarfile.GNU_FORMAT)


class Archive:
    """An archive that is read; raises `BackupError` for a file that is none, or is not whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise BackupError(f"cannot read {path}: {error.strerror}") from None
        try:
            members = self._members()
            self.database_bytes = members[FILE_NAME][1]
            self.blobs = {
                name.rpartition("/")[2]: place
                for name, place in members.items()
                if name.startswith(f"{FOLDER}/")
            }
            if any(not _BLOB.fullmatch(name) for name in self.blobs):
                raise self.damaged("it holds files that are no results")
            self.facts = self._facts(members[_MANIFEST])
            self.lost: tuple[str, ...] = tuple(self.facts.get("lost", ()))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _members(self) -> dict[str, tuple[int, int]]:
        """Return where each member begins, and its size."""
        foreign = f"{self.path} is no backup of turnout"
        if self._file.read(len(FILE_NAME) + 1) != FILE_NAME.encode() + b"\0":
            raise BackupError(f"{foreign}; name a file that `turnout backup` has made")
        self._file.seek(0)
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as tar:
                found = {each.name: (each.offset_data, each.size) for each in tar}
        except tarfile.TarError:
            found = {}
        if next(reversed(found), "") != _MANIFEST:
            raise BackupError(f"{self.path} is cut off, or damaged; take an earlier backup")
        return found

    def _facts(self, place: tuple[int, int]) -> dict[str, Any]:
        try:
            told = orjson.loads(b"".join(self._chunks(place)))
            facts: dict[str, Any] = told["facts"]
            if told["digest"] == _digest_of(facts):
                return facts
        except (ValueError, KeyError, TypeError):
            pass
        raise self.damaged("its manifest cannot be read")

    def damaged(self, what: str) -> BackupError:
        """Return the error for an archive that does not hold what it should."""
        return BackupError(f"{self.path} is damaged: {what}; take another backup")

    @contextmanager
    def database(self) -> Iterator[apsw.Connection]:
        """Open the database for reading, where it is."""
        flags, size = apsw.SQLITE_OPEN_READONLY, self.database_bytes
        with _opened(self.path, flags, size=size, asked="?immutable=1") as connection:
            yield connection

    def database_chunks(self) -> Iterator[bytes]:
        """Yield the bytes of the database; raises if they are not those that were written."""
        yield from self._checked((_HEADER_BYTES, self.database_bytes), self.facts["database"])

    def blob_chunks(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of a blob; raises if it is missing, or is not what its name says."""
        if name not in self.blobs:
            raise self.damaged(f"the result {name} is missing")
        yield from self._checked(self.blobs[name], name)

    def _checked(self, place: tuple[int, int], expected: str) -> Iterator[bytes]:
        digest = new_digest()
        for chunk in self._chunks(place):
            digest.update(chunk)
            yield chunk
        if digest.hexdigest() != expected:
            raise self.damaged(f"the content at byte {place[0]} is not what was written")

    def _chunks(self, place: tuple[int, int]) -> Iterator[bytes]:
        begin, left = place
        while left:
            self._file.seek(begin)
            chunk = self._file.read(min(left, CHUNK_BYTES))
            if not chunk:
                raise self.damaged("it is shorter than it says")
            begin, left = begin + len(chunk), left - len(chunk)
            yield chunk


def _digest_of(facts: dict[str, Any]) -> str:
    digest = new_digest()
    digest.update(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS))
    return digest.hexdigest()
