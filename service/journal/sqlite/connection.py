"""Opens the database file, for the one writer and for readers, and translates its errors.

A file of a newer turnout, of another program, or a damaged one is refused, with its path and the
fix. Only this module turns driver errors into errors of turnout. Not here: statements about events
or runs.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import apsw
import orjson

from turnout.service.domain.errors import (
    JournalBroken,
    JournalError,
    JournalFull,
    SetupError,
    TurnoutError,
)
from turnout.service.governance.ownership import refuse_shared

from .files import (
    FILE_NAME,
    NO_SPACE,
    journal_folder,
    new_id,
    read_marker,
    refuse_loss,
    refuse_other,
    write_marker,
)
from .migrations import Progress, migrate, newest_version, sync, version_of

STATEMENTS_KEPT = 400  # prepared statements: ten batch sizes of each hot one
_WRITER_CACHE_KIB = 16_384
_READER_CACHE_KIB = 2_048
DAMAGE = (apsw.CorruptError, apsw.NotADBError)  # what reading a damaged file raises
_BUSY_MILLISECONDS = 2_000  # only a reader that recovers the log after a kill holds a lock so long

QUICKLY_CHECKED_BYTES = 64 * 2**20
"""A journal up to this size is checked before it is served; a larger one while it is."""

_FIX = "restore the data folder from a backup; `turnout doctor` says what is damaged"
_SPACE_CODES = frozenset({apsw.SQLITE_IOERR_WRITE, apsw.SQLITE_IOERR_SHMSIZE})


def open_for_writing(
    data: Path,
    *,
    synchronous: Literal["full", "normal"],
    min_free_bytes: int = 0,
    progress: Progress = lambda _doing: None,
) -> apsw.Connection:
    """Open the journal of a data folder, made if missing, migrated to the newest version.

    A migration leaves at least `min_free_bytes` free, or is refused; `progress` is told of it.

    Raises `SetupError` when others may write it, when it cannot be read, or when another journal
    was here before, and `JournalBroken` when its content is damaged.
    """
    folder = journal_folder(data)
    path = folder / FILE_NAME
    _refuse_shared_files(data, folder)
    refuse_loss(data, path)
    if not path.exists():
        _create(path)
    connection = _open(path, apsw.SQLITE_OPEN_READWRITE)
    try:
        _configure(connection, _WRITER_CACHE_KIB)
        if version_of(connection, path) == 0:  # a database without tables
            migrate(connection, path)
        _check_quickly(connection, path)
        _name(connection, data, path)  # first, so that the snapshot of a migration has the id
        migrate(connection, path, min_free_bytes=min_free_bytes, progress=progress)
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", synchronous)
        if sys.platform == "darwin":
            connection.pragma("fullfsync", True)
            connection.pragma("checkpoint_fullfsync", True)
        # The writer does checkpoints: SQLite ignores a failed fsync in an automatic one.
        connection.wal_autocheckpoint(0)
    except apsw.Error as error:
        reason = _unreadable(path, error, connection)
        connection.close()
        raise reason from error
    except BaseException:
        connection.close()
        raise
    return connection


def _refuse_shared_files(data: Path, folder: Path) -> None:
    """Raise `SetupError` when others may write the journal, or own it."""
    if folder != data:  # else it is the data folder of an earlier version, or a volume
        refuse_shared(folder, "the journal's folder")
    for name in (FILE_NAME, f"{FILE_NAME}-wal"):
        if (folder / name).exists():
            refuse_shared(folder / name, "the journal")


def _create(path: Path) -> None:
    """Create the journal under another name first, so that no crash leaves an empty one."""
    draft = path.with_name(f"{path.name}.new")
    for left in path.parent.glob(f"{draft.name}*"):
        left.unlink()
    # Created here, because SQLite would use the process's umask; its log inherits the mode.
    os.close(os.open(draft, os.O_RDWR | os.O_CREAT, 0o600))
    connection = _open(draft, apsw.SQLITE_OPEN_READWRITE)
    try:
        _configure(connection, _WRITER_CACHE_KIB)
        connection.pragma(
            "journal_mode", "memory"
        )  # after a crash the next start deletes the draft
        connection.pragma("synchronous", "off")
        migrate(connection, draft)
    except apsw.Error as error:
        raise _unreadable(path, error, connection) from error
    finally:
        connection.close()
    sync(draft)
    draft.replace(path)
    sync(path.parent)
    for folder in path.parents[1:3]:  # they may be as new as the journal
        with suppress(PermissionError):  # a folder that may not be listed is not ours to sync
            sync(folder)


def _check_quickly(connection: apsw.Connection, path: Path) -> None:
    """Raise `JournalBroken` for a small journal that is damaged; a large one is checked later."""
    if path.stat().st_size <= QUICKLY_CHECKED_BYTES:
        problem = damage(connection)
        if problem is not None:
            raise JournalBroken(damaged(path, problem))


def damage(connection: apsw.Connection) -> str | None:
    """Read the whole database; return what is damaged, or None."""
    try:
        found = connection.execute("PRAGMA quick_check(1)").get
    except DAMAGE as error:
        return str(error)
    return None if found == "ok" else str(found)


def _name(connection: apsw.Connection, data: Path, path: Path) -> None:
    """Give a new journal its permanent id, check it against the marker, and write the marker."""
    named = connection.execute("SELECT value FROM counters WHERE name = 'id'").get
    if named is None:
        named = new_id()
        connection.execute("INSERT INTO counters (name, value) VALUES ('id', ?)", (named,))
    refuse_other(data, path, str(named))
    if read_marker(data) != str(named):
        write_marker(data, str(named))


@contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Translate what the system says about a data folder that cannot be used."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE or error.errno == errno.EIO:
            raise JournalFull(f"cannot write in {folder}: {error.strerror}") from None
        raise SetupError(
            f"cannot use the data folder {folder}: {error.strerror}; "
            "its owner must be the user turnout runs as, or name another folder with --data or "
            "TURNOUT_DATA"
        ) from None


def open_for_reading(folder: Path) -> apsw.Connection:
    """Open an existing database for reading, beside a writer or alone; raises `SetupError`.

    In a folder that cannot be written (a backup, a read-only mount) it is opened as immutable if
    it has no log.
    """
    connection, found = open_any_version(folder)
    if found < newest_version():
        connection.close()
        raise SetupError(
            f"{folder / FILE_NAME} has journal version {found} and this turnout reads "
            f"{newest_version()}; "
            "start `turnout serve` once on this folder to bring it up to date"
        )
    return connection


def open_any_version(folder: Path) -> tuple[apsw.Connection, int]:
    """Open as `open_for_reading` does, an older version too; returns the version."""
    path = folder / FILE_NAME
    if not path.is_file():
        raise SetupError(f"there is no journal in {folder}; TURNOUT_DATA names the data folder")
    try:
        return _open_to_read(path)
    except SetupError as error:
        if not isinstance(error.__cause__, apsw.CantOpenError | apsw.ReadOnlyError):
            raise
        if os.access(folder, os.W_OK):
            raise
        if _has_log(path):
            raise SetupError(
                f"{folder} cannot be written, and the newest rows of its journal are in a log "
                f"({path.name}-wal) that reading must fold in; copy the data folder to where you "
                "can write, and name it with --data"
            ) from error
        return _open_to_read(path, immutable=True)


def open_beside_writer(folder: Path) -> apsw.Connection:
    """Open for reading what this process writes, without asking the disk again: on the loop."""
    connection = _open(folder / FILE_NAME, apsw.SQLITE_OPEN_READONLY)
    _configure(connection, _READER_CACHE_KIB)
    connection.pragma("query_only", True)
    return connection


def _open_to_read(path: Path, *, immutable: bool = False) -> tuple[apsw.Connection, int]:
    """Open a database and return it with its version."""
    flags = apsw.SQLITE_OPEN_READONLY
    if immutable:
        connection = _open(f"{path.absolute().as_uri()}?immutable=1", flags | apsw.SQLITE_OPEN_URI)
    else:
        connection = _open(path, flags)
    try:
        _configure(connection, _READER_CACHE_KIB)
        connection.pragma("query_only", True)
        return connection, version_of(connection, path)
    except apsw.Error as error:
        reason = _unreadable(path, error, connection)
        connection.close()
        raise reason from error
    except SetupError:
        connection.close()
        raise


def _has_log(path: Path) -> bool:
    log = path.with_name(f"{path.name}-wal")
    return log.exists() and log.stat().st_size > 0


def read_all(connection: apsw.Connection, query: str, values: Any = ()) -> list[list[Any]]:
    """Return the rows of a query through one step of the database.

    The driver releases the interpreter lock at every row, and a busy event loop then keeps it for
    milliseconds: a hundred rows read one by one can take half a second. The query selects one
    JSON array per row, named `item`.
    """
    text = connection.execute(f"SELECT json_group_array(json(item)) FROM ({query})", values).get
    rows: list[list[Any]] = orjson.loads(text)
    return rows


def damaged(path: Path | str, reason: object) -> str:
    """Return what to say of a journal that is damaged."""
    return f"the journal is damaged: {path} ({reason}); {_FIX}"


def translate(error: apsw.Error, connection: apsw.Connection) -> JournalError:
    """Translate a driver error: disk full, journal broken, or only this write refused."""
    code = getattr(error, "extendedresult", 0)
    if isinstance(error, apsw.FullError):
        return JournalFull("the disk that holds the journal is full")
    if isinstance(error, apsw.IOError):
        number = connection.system_errno
        if code in _SPACE_CODES and (number in NO_SPACE or code == apsw.SQLITE_IOERR_SHMSIZE):
            return JournalFull(f"the journal cannot grow: {os.strerror(number)}")
        return JournalBroken(f"the journal's disk failed: {error} ({os.strerror(number)})")
    if isinstance(error, DAMAGE):
        return JournalBroken(damaged(connection.filename, error))
    return JournalError(f"the journal refused a write: {error}")


def _open(path: Path | str, flags: int) -> apsw.Connection:
    try:
        return apsw.Connection(str(path), flags=flags, statementcachesize=STATEMENTS_KEPT)
    except apsw.Error as error:
        raise SetupError(f"cannot open the journal {path}: {error}") from error


def plan_once(connection: apsw.Connection) -> None:
    """Plan each statement once, whatever its values.

    Otherwise SQLite plans many of them anew for each set of values, which takes eight times as long
    as a lookup. So what a partial index needs is written out in a statement, not given as a value.
    """
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)


def _configure(connection: apsw.Connection, cache_kib: int) -> None:
    plan_once(connection)
    connection.set_busy_timeout(_BUSY_MILLISECONDS)
    connection.pragma("cache_size", -cache_kib)
    connection.pragma("foreign_keys", False)
    connection.pragma("mmap_size", 0)  # with mmap a failing disk is a signal, not an error
    connection.pragma("temp_store", 2)


def _unreadable(path: Path, error: apsw.Error, connection: apsw.Connection) -> TurnoutError:
    if isinstance(error, apsw.FullError | apsw.IOError):  # worth another start by the supervisor
        return translate(error, connection)
    if isinstance(error, apsw.CantOpenError | apsw.ReadOnlyError):
        return SetupError(
            f"cannot use the journal {path}: {error}; run this as the user the service runs as"
        )
    if isinstance(error, DAMAGE):
        return SetupError(damaged(path, error))
    return SetupError(f"cannot use the journal {path}: {error}")
