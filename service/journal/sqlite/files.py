"""The files of a journal: where they are, which journal it is, and whether they still exist.

A journal has its own folder (0700) in the data folder, which may be the root of a volume that
everybody can write. A data folder of an earlier version keeps its journal where it is. A marker
beside the journal holds its id, so that a lost journal is not mistaken for a first start. Not
here: what is in the files.
"""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from turnout.service.domain.errors import SetupError

FILE_NAME = "journal.db"
FOLDER = "journal"
MARKER = "journal-id"
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The errors of a file system that has no more space for this file."""


def journal_folder(data: Path) -> Path:
    """Return the folder that holds the journal; raises `SetupError` when there are two journals."""
    own = data / FOLDER
    if not (data / FILE_NAME).exists():
        return own
    if (own / FILE_NAME).exists():
        raise SetupError(
            f"{data} has two journals, {data / FILE_NAME} and {own / FILE_NAME}; "
            "move the one that is not to be served to another folder"
        )
    return data


def last_change(data: Path) -> datetime | None:
    """Return when a data folder was last written, None when it never was."""
    folder = journal_folder(data)
    files = [*data.glob("lock"), *folder.glob(f"{FILE_NAME}*")]
    latest = max((file.stat().st_mtime for file in files), default=None)
    return None if latest is None else datetime.fromtimestamp(latest, UTC)


def new_id() -> int:
    """Return an id for a new journal."""
    return secrets.randbits(62) | 1


def read_marker(data: Path) -> str | None:
    """Return the id of the journal that was here last, None when there was none."""
    with suppress(FileNotFoundError):
        return (data / MARKER).read_text("ascii", "replace").strip()
    return None


def write_marker(data: Path, name: str) -> None:
    """Store the id of the journal that is here, atomically."""
    write_whole(data / MARKER, f"{name}\n".encode(), synced=True)


def write_whole(path: Path, content: bytes, *, synced: bool) -> None:
    """Write a small file, mode 0600, whole or not at all; `synced`: it outlives a power loss."""
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        if synced:
            file.flush()
            os.fsync(handle)
    Path(draft).replace(path)


def refuse_loss(data: Path, path: Path) -> None:
    """Raise `SetupError` when the journal at `path` is empty, or gone although one was here."""
    marker = data / MARKER
    if path.exists():
        if path.stat().st_size == 0:
            raise SetupError(
                f"{path} is empty, which a journal never is; restore it from a backup, or remove "
                f"it and {marker} to start with an empty journal"
            )
    elif marker.exists():
        raise SetupError(
            f"the journal {path} is gone: {marker} says that there was one; restore it from a "
            f"backup, or remove {marker} to start with an empty journal"
        )


def refuse_other(data: Path, path: Path, name: str) -> None:
    """Raise `SetupError` when the journal at `path` is not the one that was here last."""
    known = read_marker(data)
    if known not in (None, "", name):
        raise SetupError(
            f"{path} is another journal than the one that was here: {data / MARKER} names {known} "
            f"and this is {name}; bring that one back, or remove {data / MARKER} to go on with this"
        )


@dataclass(frozen=True, slots=True)
class _Seen:
    device: int
    inode: int
    size: int
    head: bytes


@dataclass(frozen=True, slots=True)
class Loss:
    """What happened to a file; `log_is_whole` when only the log was removed and is still open."""

    words: str
    log_is_whole: bool = False


class WatchedFiles:
    """The database and its log as they were opened; `loss` tells whether they still are there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        paths = (folder / FILE_NAME, folder / f"{FILE_NAME}-wal")
        self._seen = {path: _look(path) for path in paths}

    def loss(self) -> Loss | None:
        """Return what happened to the files of the open journal, None when nothing did.

        The one writer overwrites both files and never makes them smaller.
        """
        for path, before in self._seen.items():
            now = _look(path)
            if before is not None:
                if now is None:
                    is_log = path.name != FILE_NAME
                    return Loss(f"{path} was removed under the running service", is_log)
                if (before.device, before.inode) != (now.device, now.inode):
                    return Loss(f"{path} was replaced under the running service")
                if now.size < before.size or (before.head and not any(now.head)):
                    return Loss(f"{path} was cut off under the running service")
            self._seen[path] = now
        return None


def _look(path: Path) -> _Seen | None:
    try:
        found = path.stat()
        # Only the log: closing the database file anywhere in a process drops SQLite's locks on it.
        head = _head(path) if path.name.endswith("-wal") else b""
    except FileNotFoundError:
        return None
    return _Seen(found.st_dev, found.st_ino, found.st_size, head)


def _head(path: Path) -> bytes:
    """Return the first bytes of a log: zeros when it was truncated and written at its old end."""
    with path.open("rb") as file:
        return file.read(4)
