"""The rows of `cache=`: results of tasks by key, until they expire."""

from __future__ import annotations

import apsw

from turnout.service.journal.records import Cached

from .rows import instant, micros


def find(connection: apsw.Connection, key: bytes, at: int) -> Cached | None:
    """Return the cached result of a key, unless it has expired at `at`."""
    row = connection.execute(
        "SELECT task, run_id, encoding, result, spilled, stored_at, expires_at FROM cache"
        " WHERE key = ? AND expires_at > ?",
        (key, at),
    ).fetchone()
    if row is None:
        return None
    task, run_id, encoding, result, blob, stored_at, expires_at = row
    return Cached(
        key=key,
        task=task,
        run_id=run_id,
        encoding=encoding,
        result=result,
        blob=blob,
        stored_at=instant(stored_at),
        expires_at=instant(expires_at),
    )


def store(connection: apsw.Connection, cached: Cached) -> None:
    """Store a cached result in place of an older one."""
    connection.execute(
        "INSERT OR REPLACE INTO cache"
        " (key, task, run_id, encoding, result, spilled, stored_at, expires_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            cached.key,
            cached.task,
            cached.run_id,
            cached.encoding,
            cached.result,
            cached.blob,
            micros(cached.stored_at),
            micros(cached.expires_at),
        ),
    )


def clear(connection: apsw.Connection, task: str | None, over_by: int | None, limit: int) -> int:
    """Delete cached results: of one task or of all, expired by an instant or any."""
    connection.execute(
        "DELETE FROM cache WHERE seq IN (SELECT seq FROM cache"
        " WHERE (?1 IS NULL OR task = ?1) AND (?2 IS NULL OR expires_at <= ?2)"
        " ORDER BY expires_at LIMIT ?3)",
        (task, over_by, limit),
    )
    return connection.changes()
