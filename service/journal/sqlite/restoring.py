"""Restores a backup into a data folder, at once or not at all.

Everything is written beside the journal and synced; then the old journal is moved aside, and the
new one into its place. A crash before that changes nothing. One in between leaves no journal, but a
marker, so that the service refuses to start until the backup is restored again. Nothing is deleted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from turnout.service.domain.errors import BackupError, JournalFull, SetupError
from turnout.service.journal.records import BackupContents, RestoredTo

from .archive import Archive
from .backups import SPARE_BYTES, Progress, read_backup
from .blobs import FOLDER as BLOBS
from .files import FILE_NAME, NO_SPACE, journal_folder, write_marker
from .files import FOLDER as JOURNAL
from .lock import FolderLock
from .migrations import sync

_DRAFT = "journal-restoring"


def restore_backup(
    path: Path, data: Path, *, now: Callable[[], datetime], min_free_bytes: int, progress: Progress
) -> tuple[BackupContents, RestoredTo]:
    """Make a backup the journal of a data folder; a journal that is there is moved aside.

    Raises `SetupError` while a process uses the folder and where it cannot be used, `JournalFull`
    where the disk is too small, and `BackupError` for a file that is no whole backup.
    """
    contents = read_backup(path, progress)
    with _usable(data):
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FolderLock(data)
        try:
            with Archive(path) as archive:
                draft = data / _DRAFT
                if draft.exists():
                    shutil.rmtree(draft)  # a crash left it
                _check_space(archive, data, min_free_bytes)
                try:
                    _unpack(archive, draft, progress)
                    name = str(archive.facts["journal"])
                except BaseException:
                    shutil.rmtree(draft, ignore_errors=True)
                    raise
            moved_to = _move_aside(data, now())
            write_marker(data, name)
            sync(data)
            draft.replace(data / JOURNAL)
            sync(data)
        finally:
            lock.release()
    return contents, RestoredTo(data=data, moved_to=moved_to)


@contextmanager
def _usable(data: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise JournalFull(f"the disk of {data} is full: free some, and restore again") from None
        raise SetupError(
            f"cannot restore into {data}: {error.strerror} ({error.filename}); "
            "run this as the user the service runs as"
        ) from None


def _check_space(archive: Archive, data: Path, min_free_bytes: int) -> None:
    blob_bytes = sum(size for _, size in archive.blobs.values())
    needed = archive.database_bytes + blob_bytes + SPARE_BYTES + min_free_bytes
    free = shutil.disk_usage(data).free
    if free < needed:
        raise JournalFull(
            f"restoring {archive.path} needs {needed} bytes free in {data}, which has {free}: "
            "free some"
        )


def _unpack(archive: Archive, draft: Path, progress: Progress) -> None:
    """Write the journal of an archive into a new folder, durably."""
    total = archive.database_bytes + sum(size for _, size in archive.blobs.values())
    done = 0

    def counted(chunks: Iterable[bytes]) -> Iterator[bytes]:
        nonlocal done
        for chunk in chunks:
            yield chunk
            done += len(chunk)
            progress(done, total)

    draft.mkdir(mode=0o700)
    (draft / BLOBS).mkdir(mode=0o700)
    _write(draft / FILE_NAME, counted(archive.database_chunks()))
    folders = {draft / BLOBS / name[:2] for name in archive.blobs}
    for folder in folders:
        folder.mkdir(mode=0o700)
    for name in archive.blobs:
        _write(draft / BLOBS / name[:2] / name, counted(archive.blob_chunks(name)))
    for folder in (*folders, draft / BLOBS, draft):
        sync(folder)


def _write(path: Path, chunks: Iterable[bytes]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(descriptor)


def _move_aside(data: Path, now: datetime) -> Path | None:
    """Move what there is of a journal into a folder with the date; returns it, None for nothing."""
    own = journal_folder(data)
    is_empty = own != data and not any(own.iterdir())
    if is_empty:
        own.rmdir()
        return None
    aside = data / f"journal-replaced-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    if aside.exists():
        raise BackupError(f"{aside} is there already; try again in a second")
    if own != data:
        own.replace(aside)
        return aside
    # The folder of an earlier version. First the database: without it nothing is served.
    aside.mkdir(mode=0o700)
    for name in (FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-shm", BLOBS):
        with suppress(FileNotFoundError):
            (data / name).replace(aside / name)
    for snapshot in data.glob("journal-v*.db"):
        snapshot.replace(aside / snapshot.name)
    with suppress(OSError):
        (data / JOURNAL).rmdir()
    return aside
