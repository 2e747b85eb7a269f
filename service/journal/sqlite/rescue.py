"""Rescue: runs that the last process left running are queued again, runs without a flow are failed.

Each function writes inside the transaction it is called in. Here too: renaming a flow, which moves
its unfinished runs. Not here: when runs are isolated (`rows.is_isolated`).
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Any

import apsw

from turnout.service.domain.errors import Refused
from turnout.service.domain.run import PROCESS_DIED, RunError, RunState
from turnout.service.journal.records import FAILED, REGISTERED, Rescued

from . import operations, waits
from .counters import RunCounters
from .rows import CRASHES_BEFORE_ISOLATION, UNFINISHED_STATES, micros, pack_error

_MOST_CRASHES = 5


def rescue(connection: apsw.Connection, counters: RunCounters, now: datetime) -> Rescued:
    """Requeue runs found running; a run that keeps killing the process has failed.

    The column `blames` counts consecutive crashes. From the second crash on the run is isolated;
    the fifth, the third of it alone, is the last. An attempt that ends, or a step that an isolated
    run records, shows progress and resets the count, so a long run survives any number of
    restarts. The undo of a run that has failed here starts isolated.
    """
    at = micros(now)
    given_up: list[Any] = connection.execute(
        "SELECT seq, id FROM runs WHERE state = 'running' AND blames + 1 >= ?", (_MOST_CRASHES,)
    ).fetchall()
    error = RunError(PROCESS_DIED, f"the process died {_MOST_CRASHES} times while this run ran")
    for seq, _ in given_up:
        connection.execute(
            "INSERT INTO steps (run_seq, key, task, state, tries, started_at, finished_at,"
            " encoding, error) VALUES (?1, ?2, ?2, 'failed', 1, ?3, ?3, 'json', ?4)"
            " ON CONFLICT (run_seq, key) DO UPDATE SET tries = tries + 1",
            (seq, FAILED, at, pack_error(error)),
        )
    connection.execute(
        "UPDATE runs SET state = 'queued', blames = iif(blames + 1 >= ?2, ?3, blames + 1),"
        " crashes = crashes + 1, due_at = ?1 WHERE state = 'running'",
        (at, _MOST_CRASHES, CRASHES_BEFORE_ISOLATION),
    )
    requeued = connection.changes()
    counters.move(RunState.RUNNING, RunState.QUEUED, requeued)
    ids = tuple(row[1] for row in given_up)
    return Rescued(requeued=requeued - len(ids), failed=ids)


def fail_orphaned_runs(
    connection: apsw.Connection, counters: RunCounters, flow: str, now: datetime
) -> list[str]:
    """Make dead letters of a flow's queued runs that have failed, without undoing them."""
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
        waits.delete(connection, [seq])
        waits.run_ended(connection, run_id, at)
        connection.execute(
            "UPDATE runs SET state = 'failed', dead = 1, finished_at = ?2, error = ?3,"
            " undo = iif(?4, 'failed', undo) WHERE seq = ?1",
            (seq, at, error, undoes),
        )
        connection.execute(  # so that a retry runs the step again, as after any outcome
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

    A run stays where it is when the new name has a run of the same event.
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
    """Return how many dead letters a flow has, and how many of them are not undone."""
    dead, not_undone = connection.execute(
        "SELECT count(*), coalesce(sum(undo IS 'failed'), 0) FROM runs WHERE dead = 1 AND flow = ?",
        (flow,),
    ).fetchone() or (0, 0)
    return int(dead), int(not_undone)
