"""How a database file is opened, for the one writer and for readers, and what its errors mean.

Guarantees that a file of a newer turnout, of another program, or one that is damaged is refused
by name with the fix, and that every driver error becomes one of ours here and nowhere else.
Deliberately not here: any statement about events or runs.
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

from turnout.service.errors import (
    JournalBroken,
    JournalError,
    JournalFull,
    SetupError,
    TurnoutError,
)

FILE_NAME = "journal.db"
APPLICATION_ID = 0x7475726E  # "turn", so that another program's database is never migrated
_MIGRATIONS = Path(__file__).parent / "migrations"
_STATEMENTS_KEPT = 400  # prepared: ten batch sizes of each hot statement
_WRITER_CACHE_KIB = 16_384
_READER_CACHE_KIB = 2_048
_BUSY_MILLISECONDS = 2_000  # only a reader recovering the log after a kill holds a lock so long

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_ROOM_CODES = frozenset({apsw.SQLITE_IOERR_WRITE, apsw.SQLITE_IOERR_SHMSIZE})


def open_for_writing(folder: Path, *, synchronous: Literal["full", "normal"]) -> apsw.Connection:
    """Open or make the folder's database, brought to the newest shape; raises `SetupError`."""
    path = folder / FILE_NAME
    # Made by us, because SQLite would give the file the process's umask; its log inherits this.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    _sync_folder(folder)
    with suppress(PermissionError):  # a folder above that may not be listed is not ours to sync
        _sync_folder(folder.parent)
    connection = _open(path, apsw.SQLITE_OPEN_READWRITE)
    try:
        _settle(connection, _WRITER_CACHE_KIB)
        _migrate(connection, path)
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", synchronous)
        if sys.platform == "darwin":
            connection.pragma("fullfsync", True)
            connection.pragma("checkpoint_fullfsync", True)
        # Checkpoints are the writer's own act: SQLite ignores a failed fsync in an automatic one.
        connection.wal_autocheckpoint(0)
    except apsw.Error as error:
        reason = _unreadable(path, error, connection)
        connection.close()
        raise reason from error
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Translate what the system says about a data folder that cannot be used."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM or error.errno == errno.EIO:
            raise JournalFull(f"cannot write in {folder}: {error.strerror}") from None
        raise SetupError(
            f"cannot use the data folder {folder}: {error.strerror}; "
            "its owner must be the user turnout runs as, or point TURNOUT_DATA at another folder"
        ) from None


def open_for_reading(folder: Path) -> apsw.Connection:
    """Open an existing database to read it, beside a writer or alone; raises `SetupError`."""
    path = folder / FILE_NAME
    if not path.is_file():
        raise SetupError(f"there is no journal in {folder}; TURNOUT_DATA names the data folder")
    connection = _open(path, apsw.SQLITE_OPEN_READONLY)
    try:
        _settle(connection, _READER_CACHE_KIB)
        connection.pragma("query_only", True)
        found = _version(connection, path)
    except apsw.Error as error:
        reason = _unreadable(path, error, connection)
        connection.close()
        raise reason from error
    if found < newest_version():
        connection.close()
        raise SetupError(
            f"{path} has journal version {found} and this turnout reads {newest_version()}; "
            "start `turnout serve` once on this folder to bring it up to date"
        )
    return connection


def newest_version() -> int:
    """Return the journal version this program writes: the highest migration's number."""
    return max(int(file.name[:4]) for file in _MIGRATIONS.glob("*.sql"))


def read_all(connection: apsw.Connection, query: str, values: Any = ()) -> list[list[Any]]:
    """Return a query's rows through one step of the database.

    The driver gives the interpreter lock back at every row, and a busy event loop then keeps it
    for milliseconds; a hundred rows read one by one would cost half a second. The query selects
    one JSON array per row, named `item`.
    """
    text = connection.execute(f"SELECT json_group_array(json(item)) FROM ({query})", values).get
    rows: list[list[Any]] = orjson.loads(text)
    return rows


def translate(error: apsw.Error, connection: apsw.Connection) -> JournalError:
    """Return what a driver's error means for whoever asked: full, broken, or this write alone."""
    code = getattr(error, "extendedresult", 0)
    if isinstance(error, apsw.FullError):
        return JournalFull("the disk that holds the journal is full")
    if isinstance(error, apsw.IOError):
        number = connection.system_errno
        if code in _ROOM_CODES and (number in _NO_ROOM or code == apsw.SQLITE_IOERR_SHMSIZE):
            return JournalFull(f"the journal cannot grow: {os.strerror(number)}")
        return JournalBroken(f"the journal's disk failed: {error} ({os.strerror(number)})")
    if isinstance(error, apsw.CorruptError | apsw.NotADBError):
        return JournalBroken(f"the journal is damaged: {error}; see `turnout doctor`")
    return JournalError(f"the journal refused a write: {error}")


def _open(path: Path, flags: int) -> apsw.Connection:
    try:
        return apsw.Connection(str(path), flags=flags, statementcachesize=_STATEMENTS_KEPT)
    except apsw.Error as error:
        raise SetupError(f"cannot open the journal {path}: {error}") from error


def _settle(connection: apsw.Connection, cache_kib: int) -> None:
    connection.set_busy_timeout(_BUSY_MILLISECONDS)
    connection.pragma("cache_size", -cache_kib)
    connection.pragma("foreign_keys", False)
    connection.pragma("mmap_size", 0)  # a failing disk must be an error, not a signal
    connection.pragma("temp_store", 2)


def _version(connection: apsw.Connection, path: Path) -> int:
    """Return the version found, 0 for an empty file; refuse foreign and newer files."""
    found = int(connection.pragma("user_version"))
    owner = int(connection.pragma("application_id"))
    empty = connection.execute("SELECT count(*) FROM sqlite_schema").get == 0
    if owner != APPLICATION_ID and not empty:
        raise SetupError(
            f"{path} is another program's database; point TURNOUT_DATA at turnout's own folder"
        )
    if found > newest_version():
        raise SetupError(
            f"{path} has journal version {found} and this turnout knows {newest_version()}: "
            "upgrade turnout, or point TURNOUT_DATA at another folder"
        )
    return found


def _migrate(connection: apsw.Connection, path: Path) -> None:
    found = _version(connection, path)
    for file in sorted(_MIGRATIONS.glob("*.sql")):
        number = int(file.name[:4])
        if number <= found:
            continue
        with connection:
            connection.execute(file.read_text("utf-8"))
            connection.pragma("application_id", APPLICATION_ID)
            connection.pragma("user_version", number)


def _unreadable(path: Path, error: apsw.Error, connection: apsw.Connection) -> TurnoutError:
    if isinstance(error, apsw.FullError | apsw.IOError):  # a supervisor may try again
        return translate(error, connection)
    if isinstance(error, apsw.CantOpenError | apsw.ReadOnlyError):
        return SetupError(
            f"cannot use the journal {path}: {error}; run this as the user the service runs as"
        )
    if isinstance(error, apsw.CorruptError | apsw.NotADBError):
        return SetupError(
            f"{path} is damaged ({error}); restore it from a backup, or look with `turnout doctor`"
        )
    return SetupError(f"cannot use the journal {path}: {error}")


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut; SQLite does so for its log only."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
