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

from . import budgets, flow_state, starts
from .counters import RunCounters
from .dedupe import end_window
from .statements import load
from .values import dump

_SQL = load("retention")
_CONDITIONS = load("conditions")
_WINDOWS = load("windows")
_NEVER = 2**62  # later than any instant


def prune(
    connection: apsw.Connection,
    counters: RunCounters,
    *,
    finished_before: int,
    failed_before: int,
    unmatched_before: int,
    dedupe_before: int,
    now: int,
    limit: int,
) -> int:
    """Delete up to `limit` old runs with their steps and attempts, or else other old rows."""
    ended = _old(connection, "ended_runs", finished_before, limit)
    ended += _old(connection, "failed_runs", failed_before, limit - len(ended))
    deleted = _delete(connection, counters, ended)
    if len(ended) < limit:
        unmatched = _old(connection, "unmatched_events", unmatched_before, limit)
        unmatched += _old(
            connection, "awaited_events", unmatched_before, limit, _oldest(connection)
        )
        deleted += _delete(connection, counters, unmatched)
        deleted += end_window(connection, dedupe_before, now, limit)
        deleted += forget_keys(connection, now, limit)
    return deleted


def forget_keys(connection: apsw.Connection, now: int, limit: int) -> int:
    """Delete unique keys, counted starts and takes of budgets that count no more; returns rows."""
    deleted = _end_unique(connection, now, limit) + starts.prune(connection, now, limit)
    return deleted + budgets.prune(connection, now, limit)


def prune_oldest(connection: apsw.Connection, counters: RunCounters, limit: int) -> int:
    """Delete up to `limit` of the ended runs and unmatched events that ended first.

    Also events that a run may still wait for: the bound on the journal's size comes first.
    """
    kinds = ("ended_runs", "failed_runs", "unmatched_events")
    oldest = sorted(row for kind in kinds for row in _old(connection, kind, _NEVER, limit))
    oldest += _old(connection, "awaited_events", _NEVER, limit, _NEVER)
    return _delete(connection, counters, sorted(oldest)[:limit])


def _oldest(connection: apsw.Connection) -> int:
    """Return when the oldest unfinished run was queued; it may wait for events since."""
    if connection.execute(_SQL["is_awaited"]).get is None:
        return _NEVER  # there is nothing to compare it with
    return int(connection.execute(_SQL["oldest_unfinished"], (_NEVER,)).get)


def _old(connection: apsw.Connection, kind: str, before: int, limit: int, *more: int) -> list[Any]:
    found: list[Any] = connection.execute(_SQL[kind], (before, limit, *more)).fetchall()
    return found


def _end_unique(connection: apsw.Connection, before: int, limit: int) -> int:
    """Delete unique keys whose time has passed; returns rows."""
    connection.execute(_CONDITIONS["end_unique"], (before, limit))
    return connection.changes()


def _delete(connection: apsw.Connection, counters: RunCounters, rows: Sequence[Any]) -> int:
    """Delete the runs of `rows` with their steps and attempts, and events left without runs."""
    if not rows:
        return 0
    keep_highest(connection)
    ended = [row for row in rows if row[2]]
    windows = _windows_of(connection, [row[2] for row in ended])
    deleted = delete_runs(connection, [row[2] for row in ended])
    members = _delete_windows(connection, windows) if windows else []
    for _, _, _, flow, dead in ended:
        if dead:
            counters.add_dead_letters(flow, -1)
    left = _without_runs(connection, sorted({*members, *(row[1] for row in ended)}))
    # An event that other runs may wait for has the age limit of an unmatched one from now on.
    awaited = {seq for seq, name in left if name is not None}
    connection.execute(_SQL["keep_for_waits"], (dump(sorted(awaited)),))
    gone = {seq for seq, _ in left} - awaited | {row[1] for row in rows if not row[2]}
    return deleted + delete_events(connection, sorted(gone))


def _without_runs(connection: apsw.Connection, seqs: Sequence[int]) -> list[Any]:
    """Return (seq, name it is awaited under) of the events among `seqs` that have no run."""
    found: list[Any] = connection.execute(_SQL["without_runs"], (dump(seqs),)).fetchall()
    return found


def _windows_of(connection: apsw.Connection, runs: Sequence[int]) -> list[int]:
    """Return the windows of runs."""
    rows: list[Any] = connection.execute(_WINDOWS["windows_of_runs"], (dump(runs),)).fetchall()
    return [seq for (seq,) in rows]


def _delete_windows(connection: apsw.Connection, windows: Sequence[int]) -> list[int]:
    """Delete those of these windows that are closed and have no run; returns their events."""
    asked = (dump(windows),)
    rows: list[Any] = connection.execute(_WINDOWS["windows_without_runs"], asked).fetchall()
    gone = (dump([seq for (seq,) in rows]),)
    events: list[Any] = connection.execute(_WINDOWS["events_of_windows"], gone).fetchall()
    connection.execute(_WINDOWS["delete_members"], gone)
    connection.execute(_WINDOWS["delete_windows"], gone)
    return [event for (event,) in events]


def delete_runs(connection: apsw.Connection, seqs: Sequence[int]) -> int:
    """Delete runs with their steps and attempts; returns rows."""
    connection.execute(_CONDITIONS["release_unique"], (dump(seqs),))
    flow_state.note_use(connection, dump(seqs))
    deleted = 0
    for part in (
        "delete_steps",
        "delete_answers",
        "delete_attempts",
        "delete_traces",
        "delete_runs",
    ):
        connection.execute(_SQL[part], (dump(seqs),))
        deleted += connection.changes()
    return deleted


def delete_events(connection: apsw.Connection, seqs: Sequence[int]) -> int:
    """Delete events with their decisions; returns rows."""
    gone = dump(seqs)
    rows: list[Any] = connection.execute(_WINDOWS["windows_of_events"], (gone,)).fetchall()
    if rows:  # they have expired: what is left of them goes with the first of their events
        _delete_windows(connection, [seq for (seq,) in rows])
    connection.execute(_SQL["delete_decisions"], (gone,))
    deleted = connection.changes()
    connection.execute(_SQL["delete_events"], (gone,))
    return deleted + connection.changes()


def keep_highest(connection: apsw.Connection) -> None:
    """Store the highest seqs before rows are deleted: a seq must never be given twice."""
    connection.execute(_SQL["keep_highest"])
