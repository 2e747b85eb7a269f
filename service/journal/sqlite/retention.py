"""Retention: old runs, events and deliveries are deleted, a bounded number at a time.

Each function writes inside the transaction it is called in. What may go is found by an index, so
pruning never scans a table and never keeps other writes waiting for long.

Deleted rows leave free pages, and SQLite reuses them before the file grows; the file keeps its
size, so `size_bytes` counts the pages in use. `auto_vacuum` would return pages to the disk, but it
moves live pages at every pruning, for space the journal needs again a moment later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw
import orjson

from .counters import RunCounters
from .rows import UNFINISHED_STATES


def prune(
    connection: apsw.Connection,
    counters: RunCounters,
    *,
    finished_before: int,
    failed_before: int,
    unmatched_before: int,
    dedupe_before: int,
    limit: int,
) -> int:
    """Delete up to `limit` old runs with their steps and attempts, or else other old rows."""
    ended = _old(connection, _ENDED_RUNS, finished_before, limit)
    ended += _old(connection, _FAILED_RUNS, failed_before, limit - len(ended))
    deleted = _delete(connection, counters, ended)
    if len(ended) < limit:
        unmatched = _old(connection, _UNMATCHED_EVENTS, unmatched_before, limit)
        unmatched += _old(connection, _AWAITED_EVENTS, unmatched_before, limit, _oldest(connection))
        deleted += _delete(connection, counters, unmatched)
        deleted += _delete_deliveries(connection, dedupe_before, limit)
    return deleted


def prune_oldest(connection: apsw.Connection, counters: RunCounters, limit: int) -> int:
    """Delete up to `limit` of the ended runs and unmatched events that ended first.

    Also events that a run may still wait for: the bound on the journal's size comes first.
    """
    kinds = (_ENDED_RUNS, _FAILED_RUNS, _UNMATCHED_EVENTS)
    oldest = sorted(row for kind in kinds for row in _old(connection, kind, _NEVER, limit))
    oldest += _old(connection, _AWAITED_EVENTS, _NEVER, limit, _NEVER)
    return _delete(connection, counters, sorted(oldest)[:limit])


def _oldest(connection: apsw.Connection) -> int:
    """Return when the oldest unfinished run was queued; it may wait for events since."""
    kept_for_waits = connection.execute(
        "SELECT 1 FROM events INDEXED BY events_heard WHERE unmatched = 2 LIMIT 1"
    ).get
    if kept_for_waits is None:
        return _NEVER  # there is nothing to compare it with
    return int(
        connection.execute(
            "SELECT coalesce(min(queued_at), ?) FROM runs INDEXED BY runs_by_state"
            f" WHERE state IN {UNFINISHED_STATES}",
            (_NEVER,),
        ).get
    )


def _delete_deliveries(connection: apsw.Connection, before: int, limit: int) -> int:
    """End the dedupe window of old deliveries; their events are then found by id another way."""
    # Rows are in order of arrival, so the first few are the oldest.
    old: list[Any] = connection.execute(
        "SELECT event_seq FROM (SELECT event_seq, accepted_at FROM dedupe ORDER BY event_seq"
        " LIMIT ?) WHERE accepted_at < ?",
        (limit, before),
    ).fetchall()
    seqs = _json([row[0] for row in old])
    connection.execute(
        "UPDATE events SET by_id = 1 WHERE seq IN (SELECT value FROM json_each(?))", (seqs,)
    )
    connection.execute(
        "DELETE FROM dedupe WHERE event_seq IN (SELECT value FROM json_each(?))", (seqs,)
    )
    return len(old)


_NEVER = 2**62  # later than any instant

# What may go: (ended at, event_seq, run's seq, flow, dead). Each query names its index, because the
# planner has no statistics and would walk all runs of a state. An event whose after-run action is
# due keeps its runs: the action depends on how they ended. A dead letter whose undo has failed
# stays until an operator has dealt with it.
_RUN = "r.finished_at, r.event_seq, r.seq, r.flow, r.dead"
_STILL = "AND r.finished_at < ? AND e.effect IS NOT 0 ORDER BY r.finished_at LIMIT ?"
_EVENT = "CROSS JOIN events AS e ON e.seq = r.event_seq"
_ENDED_RUNS = (
    f"SELECT {_RUN} FROM runs AS r INDEXED BY runs_ended {_EVENT}"
    f" WHERE r.state IN ('succeeded', 'cancelled', 'skipped') {_STILL}"
)
_FAILED_RUNS = (
    f"SELECT {_RUN} FROM runs AS r INDEXED BY runs_failed {_EVENT}"
    f" WHERE r.state = 'failed' AND NOT (r.dead = 1 AND r.undo IS 'failed') {_STILL}"
)
_UNMATCHED_EVENTS = (
    "SELECT accepted_at, seq, 0, '', 0 FROM events INDEXED BY events_unmatched"
    " WHERE unmatched = 1 AND accepted_at < ?1 AND effect IS NOT 0 ORDER BY accepted_at LIMIT ?2"
)
_AWAITED_EVENTS = (
    "SELECT accepted_at, seq, 0, '', 0 FROM events INDEXED BY events_heard"
    " WHERE unmatched = 2 AND accepted_at < min(?1, ?3) AND effect IS NOT 0"
    " ORDER BY accepted_at LIMIT ?2"
)


def _old(connection: apsw.Connection, query: str, before: int, limit: int, *more: int) -> list[Any]:
    found: list[Any] = connection.execute(query, (before, limit, *more)).fetchall()
    return found


def _delete(connection: apsw.Connection, counters: RunCounters, rows: Sequence[Any]) -> int:
    """Delete the runs of `rows` with their steps and attempts, and events left without runs."""
    if not rows:
        return 0
    keep_highest(connection)
    ended = [row for row in rows if row[2]]
    deleted = delete_runs(connection, [row[2] for row in ended])
    for _, _, _, flow, dead in ended:
        if dead:
            counters.add_dead_letters(flow, -1)
    left = _without_runs(connection, sorted({row[1] for row in ended}))
    # An event that other runs may wait for has the age limit of an unmatched one from now on.
    awaited = {seq for seq, name in left if name is not None}
    connection.execute(
        "UPDATE events SET unmatched = 2 WHERE seq IN (SELECT value FROM json_each(?))",
        (_json(sorted(awaited)),),
    )
    gone = {seq for seq, _ in left} - awaited | {row[1] for row in rows if not row[2]}
    return deleted + delete_events(connection, sorted(gone))


def _without_runs(connection: apsw.Connection, seqs: Sequence[int]) -> list[Any]:
    """Return (seq, name it is awaited under) of the events among `seqs` that have no run."""
    found: list[Any] = connection.execute(
        "SELECT e.seq, e.awaited FROM events AS e WHERE e.seq IN (SELECT value FROM json_each(?))"
        " AND NOT EXISTS (SELECT 1 FROM runs AS r WHERE r.event_seq = e.seq)",
        (_json(seqs),),
    ).fetchall()
    return found


def delete_runs(connection: apsw.Connection, seqs: Sequence[int]) -> int:
    """Delete runs with their steps and attempts; returns rows."""
    deleted = 0
    for table, column in (("steps", "run_seq"), ("attempts", "run_seq"), ("runs", "seq")):
        connection.execute(
            f"DELETE FROM {table} WHERE {column} IN (SELECT value FROM json_each(?))",
            (_json(seqs),),
        )
        deleted += connection.changes()
    return deleted


def delete_events(connection: apsw.Connection, seqs: Sequence[int]) -> int:
    """Delete events with their decisions; returns rows."""
    gone = _json(seqs)
    connection.execute(
        "DELETE FROM decisions WHERE event_seq IN (SELECT value FROM json_each(?))", (gone,)
    )
    deleted = connection.changes()
    connection.execute("DELETE FROM events WHERE seq IN (SELECT value FROM json_each(?))", (gone,))
    return deleted + connection.changes()


def keep_highest(connection: apsw.Connection) -> None:
    """Store the highest seqs before rows are deleted: a seq must never be given twice."""
    connection.execute(
        "INSERT INTO counters (name, value) SELECT 'events', coalesce(max(seq), 0) FROM events"
        " WHERE true UNION ALL SELECT 'runs', coalesce(max(seq), 0) FROM runs WHERE true"
        " ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)"
    )


def _json(seqs: Sequence[int]) -> str:
    return orjson.dumps(seqs).decode()
