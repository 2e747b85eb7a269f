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
    journal_folder,
    new_id,
    read_marker,
    refuse_loss,
    refuse_other,
    write_marker,
)

APPLICATION_ID = 0x7475726E  # "turn", so that another program's database is never migrated
_MIGRATIONS = Path(__file__).parent / "migrations"
_STATEMENTS_KEPT = 400  # prepared: ten batch sizes of each hot statement
_WRITER_CACHE_KIB = 16_384
_READER_CACHE_KIB = 2_048
_BUSY_MILLISECONDS = 2_000  # only a reader recovering the log after a kill holds a lock so long

QUICKLY_CHECKED_BYTES = 64 * 2**20
"""A journal of at most this size is checked before it is served; a larger one beside."""

_MEND = "restore it from a backup, or look with `turnout doctor`"
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_SPACE_CODES = frozenset({apsw.SQLITE_IOERR_WRITE, apsw.SQLITE_IOERR_SHMSIZE})


def open_for_writing(data: Path, *, synchronous: Literal["full", "normal"]) -> apsw.Connection:
    """Open or make the journal of a data folder, brought to the newest shape.

    Raises `SetupError` for one that others may write, that is not the one that was here or is not
    to be read, and `JournalBroken` for one that is damaged inside.
    """
    folder = journal_folder(data)
    path = folder / FILE_NAME
    _refuse_strangers(data, folder)
    refuse_loss(data, path)
    if not path.exists():
        _create(path)
    connection = _open(path, apsw.SQLITE_OPEN_READWRITE)
    try:
        _configure(connection, _WRITER_CACHE_KIB)
        _migrate(connection, path)
        _check_quickly(connection, path)
        _name(connection, data, path)
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


def _refuse_strangers(data: Path, folder: Path) -> None:
    """Raise `SetupError` when others may write the journal, or own it."""
    if folder != data:  # else the data folder is an earlier version's, or a volume's own
        refuse_shared(folder, "the journal's folder")
    for name in (FILE_NAME, f"{FILE_NAME}-wal"):
        if (folder / name).exists():
            refuse_shared(folder / name, "the journal")


def _create(path: Path) -> None:
    """Make a journal whole before it has its name: no crash leaves an empty one."""
    draft = path.with_name(f"{path.name}.new")
    for left in path.parent.glob(f"{draft.name}*"):
        left.unlink()
    # Made by us, because SQLite would give the file the process's umask; its log inherits this.
    os.close(os.open(draft, os.O_RDWR | os.O_CREAT, 0o600))
    connection = _open(draft, apsw.SQLITE_OPEN_READWRITE)
    try:
        _configure(connection, _WRITER_CACHE_KIB)
        connection.pragma("journal_mode", "memory")  # a draft is thrown away by whoever comes next
        connection.pragma("synchronous", "off")
        _migrate(connection, draft)
    except apsw.Error as error:
        raise _unreadable(path, error, connection) from error
    finally:
        connection.close()
    _sync(draft)
    draft.replace(path)
    _sync(path.parent)
    for folder in path.parents[1:3]:  # which may be as new as the journal
        with suppress(PermissionError):  # one that may not be listed is not ours to sync
            _sync(folder)


def _check_quickly(connection: apsw.Connection, path: Path) -> None:
    """Raise `JournalBroken` for a small journal that is damaged; a large one is read later."""
    if path.stat().st_size <= QUICKLY_CHECKED_BYTES:
        problem = damage(connection)
        if problem is not None:
            raise JournalBroken(f"{path} is damaged ({problem}); {_MEND}")


def damage(connection: apsw.Connection) -> str | None:
    """Read the whole database and return how it is damaged, None when it is not."""
    try:
        found = connection.execute("PRAGMA quick_check(1)").get
    except (apsw.CorruptError, apsw.NotADBError) as error:
        return str(error)
    return None if found == "ok" else str(found)


def _name(connection: apsw.Connection, data: Path, path: Path) -> None:
    """Give a journal its name for ever, and leave it beside it; refuse another one's."""
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
        if error.errno in _NO_SPACE or error.errno == errno.EIO:
            raise JournalFull(f"cannot write in {folder}: {error.strerror}") from None
        raise SetupError(
            f"cannot use the data folder {folder}: {error.strerror}; "
            "its owner must be the user turnout runs as, or point TURNOUT_DATA at another folder"
        ) from None


def open_for_reading(folder: Path) -> apsw.Connection:
    """Open an existing database to read it, beside a writer or alone; raises `SetupError`.

    Where nothing can be written (a backup, a read-only mount) one without a log is read as it is.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise SetupError(f"there is no journal in {folder}; TURNOUT_DATA names the data folder")
    try:
        connection, found = _open_to_read(path)
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
        connection, found = _open_to_read(path, immutable=True)
    if found < newest_version():
        connection.close()
        raise SetupError(
            f"{path} has journal version {found} and this turnout reads {newest_version()}; "
            "start `turnout serve` once on this folder to bring it up to date"
        )
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
        return connection, _version(connection, path)
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
        if code in _SPACE_CODES and (number in _NO_SPACE or code == apsw.SQLITE_IOERR_SHMSIZE):
            return JournalFull(f"the journal cannot grow: {os.strerror(number)}")
        return JournalBroken(f"the journal's disk failed: {error} ({os.strerror(number)})")
    if isinstance(error, apsw.CorruptError | apsw.NotADBError):
        return JournalBroken(f"the journal is damaged: {error}; see `turnout doctor`")
    return JournalError(f"the journal refused a write: {error}")


def _open(path: Path | str, flags: int) -> apsw.Connection:
    try:
        return apsw.Connection(str(path), flags=flags, statementcachesize=_STATEMENTS_KEPT)
    except apsw.Error as error:
        raise SetupError(f"cannot open the journal {path}: {error}") from error


def _configure(connection: apsw.Connection, cache_kib: int) -> None:
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
        return SetupError(f"{path} is damaged ({error}); {_MEND}")
    return SetupError(f"cannot use the journal {path}: {error}")


def _sync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut; SQLite does so for its log."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
