"""The files of a journal: where they are, which journal it is, and whether they are still there.

A journal has a folder of its own (0700) in the data folder, which may be the root of a volume that
everybody can write. A data folder of an earlier version keeps its journal where it is. A marker
beside it names the journal, so that one that is gone is not taken for a first start. Not here:
what is in the files.
"""

from __future__ import annotations

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


def journal_folder(data: Path) -> Path:
    """Return the folder the journal of a data folder is in; raises `SetupError` if it has two."""
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
    """Return when something was last written in a data folder, None when nothing ever was."""
    folder = journal_folder(data)
    files = [*data.glob("lock"), *folder.glob(f"{FILE_NAME}*")]
    latest = max((file.stat().st_mtime for file in files), default=None)
    return None if latest is None else datetime.fromtimestamp(latest, UTC)


def new_id() -> int:
    """Return a name for a new journal."""
    return secrets.randbits(62) | 1


def read_marker(data: Path) -> str | None:
    """Return the name of the journal that was here last, None when there was none."""
    with suppress(FileNotFoundError):
        return (data / MARKER).read_text("ascii", "replace").strip()
    return None


def write_marker(data: Path, name: str) -> None:
    """Name the journal that is here, whole or not at all."""
    handle, draft = tempfile.mkstemp(prefix=f".{MARKER}-", dir=data)  # mode 0600
    with os.fdopen(handle, "w") as file:
        file.write(name + "\n")
        file.flush()
        os.fsync(handle)
    Path(draft).replace(data / MARKER)


def refuse_loss(data: Path, path: Path) -> None:
    """Raise `SetupError` when the journal at `path` is empty, or gone although one was here."""
    marker = data / MARKER
    if path.exists():
        if path.stat().st_size == 0:
            raise SetupError(
                f"{path} is empty, which a journal never is; restore it from a backup, or remove "
                f"it and {marker} to begin anew without what it held"
            )
    elif marker.exists():
        raise SetupError(
            f"the journal {path} is gone: {marker} says that there was one; restore it from a "
            f"backup, or remove {marker} to begin anew without what it held"
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
    """What happened to a file, and whether the open log has all of it and none is at its place."""

    words: str
    log_is_whole: bool = False


class WatchedFiles:
    """The database and its log as they were opened; `loss` looks whether they still are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        paths = (folder / FILE_NAME, folder / f"{FILE_NAME}-wal")
        self._seen = {path: _look(path) for path in paths}

    def loss(self) -> Loss | None:
        """Return what happened to the files under the open journal, None when all is well.

        The one writer writes in both over and over, and makes neither smaller.
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
        # The log's only: closing the database anywhere in a process drops SQLite's locks on it.
        head = _head(path) if path.name.endswith("-wal") else b""
    except FileNotFoundError:
        return None
    return _Seen(found.st_dev, found.st_ino, found.st_size, head)


def _head(path: Path) -> bytes:
    """Return what a log begins with: zeros where it was cut off and written on behind."""
    with path.open("rb") as file:
        return file.read(4)
