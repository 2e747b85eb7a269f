"""What happens to many rows at once: rescue at start, retention, renaming a flow.

Each function writes inside the transaction it is called in. Retention works in batches found by
an index, so that it never scans and never holds the writer for long.

Deleted rows leave free pages that are written again before the file grows; the file itself keeps
its size, so `size_bytes` counts the pages in use. Giving pages back one by one (`auto_vacuum`)
would move live pages around at every pruning for space the journal wants again a moment later.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import apsw
import orjson

from turnout.service.run import RunError, RunState

from .contract import Rescued
from .rows import micros, pack_error
from .tally import Tally

_BLAMES_ALLOWED = 3
UNFINISHED_STATES = "('scheduled', 'queued', 'running', 'retrying', 'waiting')"


def rescue(connection: apsw.Connection, tally: Tally, now: datetime) -> Rescued:
    """Requeue runs found running; a suspect found running is blamed, three times is the end."""
    at = micros(now)
    blamed: list[Any] = connection.execute(
        "SELECT seq, id, flow, crashes + 1 FROM runs"
        " WHERE state = 'running' AND crashes >= 2 AND blames + 1 >= ?",
        (_BLAMES_ALLOWED,),
    ).fetchall()
    for seq, _run_id, flow, crashes in blamed:
        error = RunError("process_died", f"the process died {crashes} times while this run ran")
        connection.execute(
            "UPDATE runs SET state = 'failed', dead = 1, crashes = crashes + 1,"
            " blames = blames + 1, finished_at = ?2, error = ?3 WHERE seq = ?1",
            (seq, at, pack_error(error)),
        )
        tally.moved(RunState.RUNNING, RunState.FAILED)
        tally.died(flow)
    connection.execute(
        "UPDATE runs SET state = 'queued', blames = blames + (crashes >= 2),"
        " crashes = crashes + 1, due_at = ? WHERE state = 'running'",
        (at,),
    )
    requeued = connection.changes()
    tally.moved(RunState.RUNNING, RunState.QUEUED, requeued)
    return Rescued(requeued=requeued, blamed=tuple(row[1] for row in blamed))


def rename_flow(connection: apsw.Connection, was: str, name: str) -> int:
    """Give a flow's unfinished runs to its new name, except where that has a run of the event."""
    connection.execute(
        f"UPDATE OR IGNORE runs SET flow = ?2 WHERE flow = ?1 AND state IN {UNFINISHED_STATES}",
        (was, name),
    )
    return connection.changes()


def prune(
    connection: apsw.Connection,
    tally: Tally,
    *,
    finished_before: int,
    failed_before: int,
    unmatched_before: int,
    dedupe_before: int,
    limit: int,
) -> int:
    """Delete up to `limit` old runs with what hangs on them, or else other old rows."""
    execute = connection.execute
    old = "SELECT r.seq, r.event_seq, r.flow, r.dead FROM runs AS r JOIN events AS e"
    still = "AND e.effect IS NOT 0 ORDER BY r.finished_at LIMIT ?"
    found: list[Any] = execute(
        f"{old} ON e.seq = r.event_seq WHERE r.state IN ('succeeded', 'cancelled', 'skipped')"
        f" AND r.finished_at < ? {still}",
        (finished_before, limit),
    ).fetchall()
    found += execute(
        f"{old} ON e.seq = r.event_seq WHERE r.state = 'failed' AND r.finished_at < ? {still}",
        (failed_before, limit - len(found)),
    ).fetchall()
    deleted = _delete_runs(connection, tally, found)
    deleted += _delete_events(connection, sorted({row[1] for row in found}))
    if len(found) < limit:
        unmatched: list[Any] = execute(
            "SELECT seq FROM events WHERE unmatched = 1 AND accepted_at < ? AND effect IS NOT 0"
            " ORDER BY accepted_at LIMIT ?",
            (unmatched_before, limit),
        ).fetchall()
        deleted += _delete_events(connection, [row[0] for row in unmatched])
        # Rows are in order of arrival: looking at the first few is enough.
        execute(
            "DELETE FROM dedupe WHERE event_seq IN (SELECT event_seq FROM"
            " (SELECT event_seq, accepted_at FROM dedupe ORDER BY event_seq LIMIT ?2)"
            " WHERE accepted_at < ?1)",
            (dedupe_before, limit),
        )
        deleted += connection.changes()
    return deleted


def prune_oldest(connection: apsw.Connection, tally: Tally, limit: int) -> int:
    """Delete up to `limit` of the oldest events all whose runs have ended, whatever their age."""
    events: list[Any] = connection.execute(
        "SELECT e.seq FROM events AS e WHERE e.effect IS NOT 0 AND NOT EXISTS"
        f" (SELECT 1 FROM runs AS r WHERE r.event_seq = e.seq AND r.state IN {UNFINISHED_STATES})"
        " ORDER BY e.seq LIMIT ?",
        (limit,),
    ).fetchall()
    seqs = [row[0] for row in events]
    runs: list[Any] = connection.execute(
        "SELECT seq, event_seq, flow, dead FROM runs"
        " WHERE event_seq IN (SELECT value FROM json_each(?))",
        (_json(seqs),),
    ).fetchall()
    return _delete_runs(connection, tally, runs) + _delete_events(connection, seqs)


def _delete_runs(connection: apsw.Connection, tally: Tally, runs: Sequence[Any]) -> int:
    """Delete finished runs (rows of seq, event_seq, flow, dead) with their steps and attempts."""
    if not runs:
        return 0
    _keep_highest(connection)
    seqs = _json([row[0] for row in runs])
    deleted = 0
    for table, column in (("steps", "run_seq"), ("attempts", "run_seq"), ("runs", "seq")):
        connection.execute(
            f"DELETE FROM {table} WHERE {column} IN (SELECT value FROM json_each(?))", (seqs,)
        )
        deleted += connection.changes()
    for _seq, _event_seq, flow, dead in runs:
        if dead:
            tally.died(flow, -1)
    return deleted


def _delete_events(connection: apsw.Connection, seqs: Sequence[int]) -> int:
    """Delete those of the events that no run needs any more, with their decisions."""
    if not seqs:
        return 0
    _keep_highest(connection)
    free: list[Any] = connection.execute(
        "SELECT e.seq FROM events AS e WHERE e.seq IN (SELECT value FROM json_each(?))"
        " AND NOT EXISTS (SELECT 1 FROM runs AS r WHERE r.event_seq = e.seq)",
        (_json(seqs),),
    ).fetchall()
    gone = _json([row[0] for row in free])
    connection.execute(
        "DELETE FROM decisions WHERE event_seq IN (SELECT value FROM json_each(?))", (gone,)
    )
    deleted = connection.changes()
    connection.execute("DELETE FROM events WHERE seq IN (SELECT value FROM json_each(?))", (gone,))
    return deleted + connection.changes()


def _keep_highest(connection: apsw.Connection) -> None:
    """Remember the highest seqs before rows go, because a seq must never be given twice."""
    connection.execute(
        "INSERT INTO counters (name, value) SELECT 'events', coalesce(max(seq), 0) FROM events"
        " WHERE true UNION ALL SELECT 'runs', coalesce(max(seq), 0) FROM runs WHERE true"
        " ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)"
    )


def _json(seqs: Sequence[int]) -> str:
    return orjson.dumps(seqs).decode()
