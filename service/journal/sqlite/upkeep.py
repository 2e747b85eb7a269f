"""What happens to many rows at once: rescue at start, retention, renaming a flow.

Each function writes inside the transaction it is called in. Retention works in batches found by
an index, so that it never scans and never holds the writer for long.

Deleted rows leave free pages that are written again before the file grows; the file itself keeps
its size, so `size_bytes` counts the pages in use. Giving pages back one by one (`auto_vacuum`)
would move live pages around at every pruning for space the journal wants again a moment later.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import apsw
import orjson

from turnout.service.domain.errors import Refused
from turnout.service.domain.run import PROCESS_DIED, RunError, RunState
from turnout.service.journal.records import FAILED, REGISTERED, Rescued

from . import operations, waits
from .counters import RunCounters
from .rows import DEATHS_BEFORE_ALONE, micros, pack_error

_DEATHS = 5
UNFINISHED_STATES = "('scheduled', 'queued', 'running', 'retrying', 'waiting')"


def rescue(connection: apsw.Connection, counters: RunCounters, now: datetime) -> Rescued:
    """Requeue runs found running; those under which the process keeps dying have failed.

    `blames` counts deaths in a row. From the second on the run is isolated: it runs alone, and
    after three more deaths it fails. An attempt that ends, or a recorded step of an isolated run,
    shows progress and resets the count: a long-lived run outlives any restarts. The ending of a
    run that has failed starts isolated.
    """
    at = micros(now)
    blamed: list[Any] = connection.execute(
        "SELECT seq, id FROM runs WHERE state = 'running' AND blames + 1 >= ?", (_DEATHS,)
    ).fetchall()
    error = RunError(PROCESS_DIED, f"the process died {_DEATHS} times while this run ran")
    for seq, _ in blamed:
        connection.execute(
            "INSERT INTO steps (run_seq, key, task, state, tries, started_at, finished_at,"
            " encoding, error) VALUES (?1, ?2, ?2, 'failed', 1, ?3, ?3, 'json', ?4)"
            " ON CONFLICT (run_seq, key) DO UPDATE SET tries = tries + 1",
            (seq, FAILED, at, pack_error(error)),
        )
    connection.execute(
        "UPDATE runs SET state = 'queued', blames = iif(blames + 1 >= ?2, ?3, blames + 1),"
        " crashes = crashes + 1, due_at = ?1 WHERE state = 'running'",
        (at, _DEATHS, DEATHS_BEFORE_ALONE),
    )
    requeued = connection.changes()
    counters.move(RunState.RUNNING, RunState.QUEUED, requeued)
    ids = tuple(row[1] for row in blamed)
    return Rescued(requeued=requeued - len(ids), blamed=ids)


def bury(connection: apsw.Connection, counters: RunCounters, flow: str, now: datetime) -> list[str]:
    """Make dead letters of a flow's queued runs that have failed, without their ending."""
    at = micros(now)
    failed: list[Any] = connection.execute(
        "SELECT r.seq, r.id, s.error, r.dead, r.undo IS 'failed', EXISTS (SELECT 1 FROM steps AS u"
        f" WHERE u.run_seq = r.seq AND u.task = '{REGISTERED}')"
        " FROM runs AS r INDEXED BY runs_by_state"
        " CROSS JOIN steps AS s ON s.run_seq = r.seq AND s.key = ?"
        " WHERE r.state = 'queued' AND r.flow = ?",
        (FAILED, flow),
    ).fetchall()
    for seq, run_id, error, was_dead, had_failed, undoes in failed:
        for _, child in waits.children(connection, seq):
            with suppress(Refused):  # it is being undone already
                because = f"run {run_id}, which waits for it, has ended"
                operations.cancel(connection, counters, child, now, reason=because)
        waits.forget(connection, [seq])
        waits.run_ended(connection, run_id, at)
        connection.execute(
            "UPDATE runs SET state = 'failed', dead = 1, finished_at = ?2, error = ?3,"
            " undo = iif(?4, 'failed', undo) WHERE seq = ?1",
            (seq, at, error, undoes),
        )
        connection.execute(  # as an outcome does: a retry runs the step again
            "UPDATE steps SET superseded = 1 WHERE run_seq = ?1 AND state = 'failed'"
            " AND key = json_extract(?2, '$.step')",
            (seq, error),
        )
        counters.move(RunState.QUEUED, RunState.FAILED)
        if not was_dead:
            counters.add_dead_letters(flow)
        if undoes and not (was_dead and had_failed):
            counters.add_not_undone(flow)
    return [row[1] for row in failed]


def rename_flow(connection: apsw.Connection, counters: RunCounters, was: str, name: str) -> int:
    """Give a flow's unfinished runs and dead letters to its new name.

    Except where that has a run of the event.
    """
    dead, not_undone = _dead_letters(connection, was)
    renamed = 0
    for which in ("dead = 1", f"state IN {UNFINISHED_STATES}"):
        connection.execute(
            f"UPDATE OR IGNORE runs SET flow = ?2 WHERE flow = ?1 AND {which}", (was, name)
        )
        renamed += connection.changes()
    if dead:
        dead_left, not_undone_left = _dead_letters(connection, was)
        for flow, sign in ((was, -1), (name, 1)):
            counters.add_dead_letters(flow, sign * (dead - dead_left))
            counters.add_not_undone(flow, sign * (not_undone - not_undone_left))
    return renamed


def _dead_letters(connection: apsw.Connection, flow: str) -> tuple[int, int]:
    """Count a flow's dead letters, and those of them that are not undone."""
    dead, not_undone = connection.execute(
        "SELECT count(*), coalesce(sum(undo IS 'failed'), 0) FROM runs WHERE dead = 1 AND flow = ?",
        (flow,),
    ).fetchone() or (0, 0)
    return int(dead), int(not_undone)


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
    """Delete up to `limit` old runs with what hangs on them, or else other old rows."""
    ended = _old(connection, _ENDED_RUNS, finished_before, limit)
    ended += _old(connection, _FAILED_RUNS, failed_before, limit - len(ended))
    deleted = _delete(connection, counters, ended)
    if len(ended) < limit:
        unmatched = _old(connection, _UNMATCHED_EVENTS, unmatched_before, limit)
        unmatched += _old(connection, _HEARD_EVENTS, unmatched_before, limit, _oldest(connection))
        deleted += _delete(connection, counters, unmatched)
        deleted += _forget_deliveries(connection, dedupe_before, limit)
    return deleted


def prune_oldest(connection: apsw.Connection, counters: RunCounters, limit: int) -> int:
    """Delete up to `limit` of the ended runs and unmatched events that ended first.

    Also events that a run may come to wait for: where room is short the bound comes first.
    """
    kinds = (_ENDED_RUNS, _FAILED_RUNS, _UNMATCHED_EVENTS)
    oldest = sorted(row for kind in kinds for row in _old(connection, kind, _NEVER, limit))
    oldest += _old(connection, _HEARD_EVENTS, _NEVER, limit, _NEVER)
    return _delete(connection, counters, sorted(oldest)[:limit])


def _oldest(connection: apsw.Connection) -> int:
    """Return since when the oldest unfinished run may wait for what comes; `_NEVER` for none."""
    heard = connection.execute(
        "SELECT 1 FROM events INDEXED BY events_heard WHERE unmatched = 2 LIMIT 1"
    ).get
    if heard is None:
        return _NEVER  # nobody asks
    return int(
        connection.execute(
            "SELECT coalesce(min(queued_at), ?) FROM runs INDEXED BY runs_by_state"
            f" WHERE state IN {UNFINISHED_STATES}",
            (_NEVER,),
        ).get
    )


def _forget_deliveries(connection: apsw.Connection, before: int, limit: int) -> int:
    """End the dedupe window of old deliveries; events still kept are found by their id anew."""
    # Rows are in order of arrival: looking at the first few is enough.
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

# What may go, each by an index of its own: (ended at, event_seq, run's seq, flow, dead). The
# planner has no statistics and would walk all runs of a state. An event whose effect is still
# due keeps its runs, because the effect depends on how they ended. A dead letter that is not undone
# stays until somebody has dealt with it.
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
_HEARD_EVENTS = (
    "SELECT accepted_at, seq, 0, '', 0 FROM events INDEXED BY events_heard"
    " WHERE unmatched = 2 AND accepted_at < min(?1, ?3) AND effect IS NOT 0"
    " ORDER BY accepted_at LIMIT ?2"
)


def _old(connection: apsw.Connection, query: str, before: int, limit: int, *more: int) -> list[Any]:
    found: list[Any] = connection.execute(query, (before, limit, *more)).fetchall()
    return found


def _delete(connection: apsw.Connection, counters: RunCounters, rows: Sequence[Any]) -> int:
    """Delete the runs of `rows` with what hangs on them, and events left without runs."""
    if not rows:
        return 0
    keep_highest(connection)
    ended = [row for row in rows if row[2]]
    deleted = delete_runs(connection, [row[2] for row in ended])
    for _, _, _, flow, dead in ended:
        if dead:
            counters.add_dead_letters(flow, -1)
    left = _without_runs(connection, sorted({row[1] for row in ended}))
    # One that other runs may come to wait for goes as if it had never had runs of its own.
    heard = {seq for seq, awaited in left if awaited is not None}
    connection.execute(
        "UPDATE events SET unmatched = 2 WHERE seq IN (SELECT value FROM json_each(?))",
        (_json(sorted(heard)),),
    )
    gone = {seq for seq, _ in left} - heard | {row[1] for row in rows if not row[2]}
    return deleted + delete_events(connection, sorted(gone))


def _without_runs(connection: apsw.Connection, seqs: Sequence[int]) -> list[Any]:
    """Return (seq, name it is awaited under) of those of these events that have no run."""
    found: list[Any] = connection.execute(
        "SELECT e.seq, e.awaited FROM events AS e WHERE e.seq IN (SELECT value FROM json_each(?))"
        " AND NOT EXISTS (SELECT 1 FROM runs AS r WHERE r.event_seq = e.seq)",
        (_json(seqs),),
    ).fetchall()
    return found


def delete_runs(connection: apsw.Connection, seqs: Sequence[int]) -> int:
    """Delete runs with what hangs on them; returns rows."""
    deleted = 0
    for table, column in (("steps", "run_seq"), ("attempts", "run_seq"), ("runs", "seq")):
        connection.execute(
            f"DELETE FROM {table} WHERE {column} IN (SELECT value FROM json_each(?))",
            (_json(seqs),),
        )
        deleted += connection.changes()
    return deleted


def delete_events(connection: apsw.Connection, seqs: Sequence[int]) -> int:
    """Delete events with what was decided about them; returns rows."""
    gone = _json(seqs)
    connection.execute(
        "DELETE FROM decisions WHERE event_seq IN (SELECT value FROM json_each(?))", (gone,)
    )
    deleted = connection.changes()
    connection.execute("DELETE FROM events WHERE seq IN (SELECT value FROM json_each(?))", (gone,))
    return deleted + connection.changes()


def keep_highest(connection: apsw.Connection) -> None:
    """Remember the highest seqs before rows go, because a seq must never be given twice."""
    connection.execute(
        "INSERT INTO counters (name, value) SELECT 'events', coalesce(max(seq), 0) FROM events"
        " WHERE true UNION ALL SELECT 'runs', coalesce(max(seq), 0) FROM runs WHERE true"
        " ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)"
    )


def _json(seqs: Sequence[int]) -> str:
    return orjson.dumps(seqs).decode()
