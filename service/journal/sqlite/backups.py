"""Makes backups of a journal beside its writer, and says whether a file is a whole one.

The database is read in one snapshot, a few pages at a time, so the writer never waits; its log
grows meanwhile. Blobs are copied afterwards: until then the writer deletes none (`blobs.sweep`).
What is written is read again, all of it, before it gets the name of a backup: no snapshot is open
then, so that takes only the processor that nobody else wants. After each part a backup rests. Keys
are in other files, which are left alone. Not here: which backups are kept (`operate.backups`), and
restoring.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import apsw

from turnout.service.domain.errors import BackupError, JournalError, JournalFull, SetupError
from turnout.service.journal.records import BackupContents

from .archive import Archive, ArchiveWriter
from .blobs import CHUNK_BYTES, FOLDER, BlobStore
from .connection import open_any_version
from .files import NO_SPACE, journal_folder
from .migrations import sync, version_of
from .statements import load
from .values import instant

Progress = Callable[[int, int], None]
"""Called with how many bytes are copied, and of how many; what it raises ends the backup."""

T = TypeVar("T")

_SQL = load("backups")
_STEP_PAGES = 32  # takes 0.3 ms: a commit of the service may wait that long for the processor
_RESTS = 3
"""How many times as long as it works a backup rests. With 1, commits beside it took 1.4 times as
long as without it, with 3 as long (p99 at 500 events/s on two cores, both beside one service)."""
_MOST_REST_SECONDS = 1.0  # after a disk or a terminal that kept it waiting: the snapshot is open
_READ_SECONDS = 0.005
"""So long it reads before it rests: who reads when idle may wait long to go on after each rest."""
_WRITTEN_BYTES = 2 * 2**20
SPARE_BYTES = 16 * 2**20
"""How much more must be free than a backup or a restored journal takes."""

_CHECKED_OPCODES = 1000  # take less than 0.1 ms, but for a page that must be read from disk
_TRIES = 50
_PAUSE_SECONDS = 0.02
_NEWEST = 50_000
_FORMAT = 1
_SUFFIX = ".tar"
_DRAFT = ".part"


def make_backup(
    data: Path,
    folder: Path,
    *,
    now: Callable[[], datetime],
    min_free_bytes: int,
    progress: Progress,
) -> BackupContents:
    """Make a backup of a data folder in `folder`, verified, and return what it holds.

    A result whose file is missing or damaged in the journal is left out, and named in `lost`.
    Raises `SetupError` for folders that cannot be used, `JournalFull` where the disk is too small,
    and `BackupError` when another backup is under way, or this one is not as it was written.
    """
    own = journal_folder(data)
    with _told_by_errors(folder), _opened(own) as connection:
        _prepare(folder, data)
        with _blobs_kept(own):
            heads = _heads(connection)  # which the other connection may not see less than
            prefix = _prefix(connection)
            for draft in folder.glob(f".{prefix}*{_DRAFT}"):
                draft.unlink()  # a crash left it
            taken_at = now()  # before the snapshot: nothing that came earlier is left out
            path = folder / f"{prefix}{taken_at.astimezone(UTC):%Y%m%dT%H%M%S.%f}Z{_SUFFIX}"
            draft = folder / f".{path.name}{_DRAFT}"
            try:
                with ArchiveWriter(draft, taken_at) as archive:
                    with _snapshot(own) as snapshot:
                        store = BlobStore(own)
                        blobs = _blobs_of(snapshot, store)
                        _check_space(snapshot, sum(blobs.values()), folder, own, min_free_bytes)
                        facts = {"heads": heads, **_facts(snapshot, taken_at)}
                        pace = _Pace(archive, progress, sum(blobs.values()))
                        _copy(snapshot, archive, pace)
                    facts["database"] = _when_idle(lambda: archive.digest(pace.digested))
                    facts["lost"] = _add_blobs(archive, store, blobs, pace)
                    archive.finish(facts | {"files": len(blobs) - len(facts["lost"])})
                contents = _when_idle(lambda: read_backup(draft, pace.verified))
                draft.replace(path)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
            sync(folder)
    return replace(contents, file=path)


def read_backup(path: Path, progress: Progress = lambda _done, _total: None) -> BackupContents:
    """Read all of a backup and return what it holds.

    Raises `BackupError` for whatever is not as it was written, and `SetupError` for a backup of a
    newer turnout.
    """
    with Archive(path) as archive:
        if archive.facts.get("format") != _FORMAT:
            raise SetupError(f"{path} is a backup of a newer turnout: upgrade turnout")
        with archive.database() as connection:
            try:
                found = version_of(connection, path)
                _check(archive, connection, progress)
                return _contents(archive, connection, found)
            except (apsw.Error, UnicodeDecodeError) as error:
                raise archive.damaged(str(error)) from None


def prune_backups(data: Path, folder: Path, *, keep: int, newest: Path) -> list[Path]:
    """Delete the oldest backups of this journal in a folder, all but `keep`; returns them.

    Only files that are named as backups of this journal are, and never `newest`.
    """
    with _opened(journal_folder(data)) as connection:
        prefix = _prefix(connection)
    named = re.compile(re.escape(prefix) + r"\d{8}T\d{6}\.\d{6}Z" + re.escape(_SUFFIX))
    found = sorted(
        path for path in folder.iterdir() if named.fullmatch(path.name) and path != newest
    )
    gone = found[: max(len(found) + 1 - keep, 0)]
    for path in gone:
        path.unlink(missing_ok=True)
    return gone


def _id(connection: apsw.Connection) -> str:
    """Return the id of a journal; an early version gave it none."""
    return str(connection.execute(_SQL["journal_id"]).get or "")


def _prefix(connection: apsw.Connection) -> str:
    """Return how the names of this journal's backups begin."""
    return f"turnout-{int(_id(connection) or 0):016x}-"


def _prepare(folder: Path, data: Path) -> None:
    """Make the folder of backups; raises `SetupError` for one that cannot be used."""
    if folder.resolve().is_relative_to(data.resolve()):
        raise SetupError(
            f"{folder} is in the data folder {data}, and would be lost with it; "
            "name a folder on another disk with --to"
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"cannot make the folder {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SetupError(
            f"cannot write in {folder}; make it writable for this user, or name another with --to"
        )


@contextmanager
def _told_by_errors(folder: Path) -> Iterator[None]:
    """Raise errors of turnout for what the operating system and the database refuse inside."""
    try:
        yield
    except (OSError, apsw.Error) as error:
        if isinstance(error, apsw.FullError) or getattr(error, "errno", None) in NO_SPACE:
            raise JournalFull(_full(folder)) from None
        raise BackupError(
            f"the backup in {folder} cannot be made: {error}; "
            "`turnout doctor` says whether the journal is damaged"
        ) from error


def _full(folder: Path) -> str:
    return f"the disk of {folder} is full: free some, or name another folder with --to"


@contextmanager
def _blobs_kept(folder: Path) -> Iterator[None]:
    """Have the writer delete no blobs; raises `BackupError` where another backup does."""
    blobs = folder / FOLDER
    with suppress(OSError):
        blobs.mkdir(mode=0o700, exist_ok=True)
    if not blobs.exists():  # on a read-only disk, where nobody deletes
        yield
        return
    descriptor = os.open(blobs, os.O_RDONLY)
    try:
        for _ in range(_TRIES):  # the writer has it while it deletes some
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(_PAUSE_SECONDS)
        else:
            raise BackupError(f"another backup of {folder} is under way; try again when it is done")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _opened(folder: Path) -> Iterator[apsw.Connection]:
    connection, _ = open_any_version(folder)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def _snapshot(folder: Path) -> Iterator[apsw.Connection]:
    """Open the database as it is now, whatever is written meanwhile."""
    with _opened(folder) as connection:
        connection.execute("BEGIN")
        connection.execute(_SQL["journal_id"]).get  # noqa: B018  the snapshot is that of a read
        yield connection


def _heads(connection: apsw.Connection) -> list[int]:
    (found,) = _rows(connection, "heads")
    return list(found)


def _rows(connection: apsw.Connection, name: str, *asked: int) -> list[Any]:
    found: list[Any] = connection.execute(_SQL[name], asked).fetchall()
    return found


def _named_blobs(connection: apsw.Connection) -> list[str]:
    """Return the blobs that rows name, in a journal of any version."""
    parts = [
        f"SELECT {column} FROM {table} WHERE {column} IS NOT NULL"
        for table, column in _rows(connection, "blob_columns")
    ]
    return [name for (name,) in connection.execute(" UNION ".join(parts))] if parts else []


def _blobs_of(connection: apsw.Connection, store: BlobStore) -> dict[str, int]:
    """Return the sizes of the blobs that rows name, 0 for one that is missing."""
    found = {}
    for name in _named_blobs(connection):
        found[name] = 0
        with suppress(OSError):
            found[name] = store.path(name).stat().st_size
    return found


def _check_space(
    snapshot: apsw.Connection, blob_bytes: int, folder: Path, own: Path, min_free_bytes: int
) -> None:
    pages = int(snapshot.pragma("page_count")) * int(snapshot.pragma("page_size"))
    needed = pages + blob_bytes + SPARE_BYTES
    if folder.stat().st_dev == own.stat().st_dev:  # else intake would stop
        needed += min_free_bytes
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise JournalFull(
            f"the backup needs {needed} bytes free in {folder}, which has {free}: "
            "free some, or name another folder with --to"
        )


def _facts(snapshot: apsw.Connection, taken_at: datetime) -> dict[str, Any]:
    """Return what the manifest says of the journal."""
    return {
        "format": _FORMAT,
        "taken_at": taken_at.astimezone(UTC).isoformat(),
        "program": version("turnout"),
        "journal": _id(snapshot),
        "version": int(snapshot.pragma("user_version")),
    }


def _copy(snapshot: apsw.Connection, archive: ArchiveWriter, pace: _Pace) -> None:
    page_bytes = int(snapshot.pragma("page_size"))
    pace.total += int(snapshot.pragma("page_count")) * page_bytes
    with archive.database() as copy, copy.backup("main", snapshot, "main") as backup:
        while not backup.done:
            backup.step(_STEP_PAGES)
            pace.copied((backup.page_count - backup.remaining) * page_bytes)


def _add_blobs(
    archive: ArchiveWriter, store: BlobStore, blobs: dict[str, int], pace: _Pace
) -> list[str]:
    """Add the blobs, and return the names of those that are missing or damaged."""
    lost = []
    for name, size in blobs.items():
        try:
            archive.add_blob(name, size, pace.counted(store.chunks(name)))
        except JournalError:
            lost.append(name)
    return lost


class _Pace:
    """Works a little at a time and rests in between, for who else needs the machine.

    `total` is how many bytes there are to copy.
    """

    def __init__(self, archive: ArchiveWriter, progress: Progress, total: int) -> None:
        self.total = total
        self._archive = archive
        self._progress = progress
        self._done = self._written = 0
        self._began = time.monotonic()
        self._used = time.process_time()

    def copied(self, done: int) -> None:
        """Note how many bytes are copied, and rest: as the disk is slow, it rests longer."""
        took = time.monotonic() - self._began
        self._done = done
        if done - self._written >= _WRITTEN_BYTES:
            self._written = done
            self._archive.start_writing()
        self._progress(min(done, self.total), self.total)
        time.sleep(min(_RESTS * took, _MOST_REST_SECONDS))
        self._began, self._used = time.monotonic(), time.process_time()

    def digested(self) -> None:
        """Note that a part of what is copied was read for its digest, and rest."""
        self.verified(min(self._done, self.total), self.total)

    def verified(self, done: int, total: int) -> None:
        """Note how many bytes are read again, and rest."""
        self._progress(done, total)
        used = time.process_time() - self._used  # it may wait long for a processor that is wanted
        if used >= _READ_SECONDS:
            time.sleep(_RESTS * used)
            self._began, self._used = time.monotonic(), time.process_time()

    def counted(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield chunks, each noted once it is written."""
        for chunk in chunks:
            yield chunk
            self.copied(self._done + len(chunk))


def _when_idle(call: Callable[[], T]) -> T:
    """Return what `call` returns, made in a thread that gives way to all others at once.

    A process at nice 10 keeps a core for 3 ms that somebody else wants (Linux 6.18, measured).
    """
    done: Future[T] = Future()

    def work() -> None:
        if sys.platform == "linux":
            with suppress(PermissionError):  # a sandbox may refuse it
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # 0: this thread
        try:
            done.set_result(call())
        except BaseException as error:  # noqa: BLE001  it is raised where it is waited for
            done.set_exception(error)

    # Not joined: Ctrl-C ends the command although an integrity check is under way.
    threading.Thread(target=work, name="turnout-backup", daemon=True).start()
    return done.result()


def _check(archive: Archive, connection: apsw.Connection, progress: Progress) -> None:
    facts, total = archive.facts, archive.database_bytes
    for number, _ in enumerate(archive.database_chunks()):
        progress(min(number * CHUNK_BYTES, total), total)

    def goes_on() -> bool:
        progress(total, total)
        return False  # it is not to be interrupted

    connection.set_progress_handler(goes_on, _CHECKED_OPCODES)
    problem = connection.execute("PRAGMA integrity_check(1)").get
    if problem != "ok":
        raise archive.damaged(str(problem))
    if _id(connection) != facts["journal"]:
        raise archive.damaged("it holds another journal than its manifest says")
    missing = [
        had for had, has in zip(facts["heads"], _heads(connection), strict=True) if had > has
    ]
    if missing:
        raise archive.damaged("its newest events or runs are missing")
    for name in _named_blobs(connection):
        for _ in archive.blob_chunks(name) if name not in archive.lost else ():
            progress(total, total)


def _contents(archive: Archive, connection: apsw.Connection, found: int) -> BackupContents:
    def pairs(name: str, *asked: int) -> dict[str, Any]:
        return dict(_rows(connection, name, *asked))

    facts, last = archive.facts, pairs("last_events", _NEWEST)
    return BackupContents(
        file=archive.path,
        taken_at=datetime.fromisoformat(facts["taken_at"]),
        program=str(facts["program"]),
        version=found,
        bytes=archive.path.stat().st_size,
        files=len(archive.blobs),
        events=int(connection.execute(_SQL["events"]).get),
        runs=pairs("runs"),
        last_events={trigger: instant(at) for trigger, at in last.items()},
        positions=pairs("positions"),
        lost=archive.lost,
    )
