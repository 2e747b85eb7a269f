"""The rows of `cache=`: results of tasks by key, until they expire."""

from __future__ import annotations

from typing import Any, NamedTuple

import apsw

from turnout.service.journal.records import Cached

from .columns import selected
from .statements import load
from .values import instant, micros

_SQL = load("cache")


class CacheRow(NamedTuple):
    """The columns of the table `cache`."""

    key: bytes
    task: str
    run_id: str
    encoding: str
    result: bytes | None
    blob: str | None
    stored_at: int
    expires_at: int


_FIND = f"SELECT {selected(CacheRow._fields)} FROM cache WHERE key = ?1 AND expires_at > ?2"
_STORE = (
    f"INSERT OR REPLACE INTO cache ({selected(CacheRow._fields)})"
    f" VALUES ({', '.join('?' * len(CacheRow._fields))})"
)


def find(connection: apsw.Connection, key: bytes, at: int) -> Cached | None:
    """Return the cached result of a key, unless it has expired at `at`."""
    values: Any = connection.execute(_FIND, (key, at)).fetchone()
    if values is None:
        return None
    row = CacheRow(*values)
    return Cached(
        key=row.key,
        task=row.task,
        run_id=row.run_id,
        encoding=row.encoding,  # type: ignore[arg-type]  # the table checks it
        result=row.result,
        blob=row.blob,
        stored_at=instant(row.stored_at),
        expires_at=instant(row.expires_at),
    )


def store(connection: apsw.Connection, cached: Cached) -> None:
    """Store a cached result in place of an older one."""
    row = CacheRow(
        key=cached.key,
        task=cached.task,
        run_id=cached.run_id,
        encoding=cached.encoding,
        result=cached.result,
        blob=cached.blob,
        stored_at=micros(cached.stored_at),
        expires_at=micros(cached.expires_at),
    )
    connection.execute(_STORE, row)


def count(connection: apsw.Connection, task: str | None) -> int:
    """Return how many results of a task, or of all, are cached."""
    found: int = connection.execute(_SQL["count"], (task,)).get
    return found


def clear(connection: apsw.Connection, task: str | None, over_by: int | None, limit: int) -> int:
    """Delete cached results: of one task or of all, expired by an instant or any."""
    connection.execute(_SQL["clear"], (task, over_by, limit))
    return connection.changes()
