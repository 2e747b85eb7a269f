"""Rescue: runs that the last process left running are queued again, runs without a flow are failed.

Each function writes inside the transaction it is called in. Here too: renaming a flow, which moves
its unfinished runs. Not here: when runs are isolated (`crash_isolation`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import apsw

from turnout.service.domain.run import PROCESS_DIED, Run, RunError, RunState
from turnout.service.journal.records import FAILED, REGISTERED, Rescued

from . import alerts, flow_state, operations, overrides, pauses, run_keys, starts, waits
from .alerts import FailureCounts
from .counters import RunCounters
from .crash_isolation import CRASHES_BEFORE_ISOLATION, MOST_CRASHES
from .runs import RUN_COLUMNS, RUN_SOURCE, run_from
from .statements import load
from .values import micros, pack_error
from .windows import opened_mark

_SQL = load("rescue")
_CONDITIONS = load("conditions")
_WINDOWS = load("windows")
_RUN = f"SELECT {RUN_COLUMNS} FROM {RUN_SOURCE} WHERE r.seq = ?"


def rescue(connection: apsw.Connection, counters: RunCounters, now: datetime) -> Rescued:
    """Requeue runs found running; a run that keeps killing the process has failed.

    From the second of `consecutive_crashes` on the run is isolated;
    the fifth, the third of it alone, is the last. An attempt that ends, or a step that an isolated
    run records, shows progress and resets the count, so a long run survives any number of
    restarts. The undo of a run that has failed here starts isolated.
    """
    at = micros(now)
    for which in ("pull_back", "pull_back_members"):
        connection.execute(_WINDOWS[which], (at,))
    given_up: list[Any] = connection.execute(_SQL["given_up"], (MOST_CRASHES,)).fetchall()
    error = RunError(PROCESS_DIED, f"the process died {MOST_CRASHES} times while this run ran")
    for seq, _ in given_up:
        connection.execute(_SQL["mark_failed"], (seq, FAILED, at, pack_error(error)))
    connection.execute(_SQL["requeue"], (at, MOST_CRASHES, CRASHES_BEFORE_ISOLATION))
    requeued = connection.changes()
    counters.move(RunState.RUNNING, RunState.QUEUED, requeued)
    ids = tuple(row[1] for row in given_up)
    return Rescued(requeued=requeued - len(ids), failed=ids)


def fail_orphaned_runs(
    connection: apsw.Connection, counters: RunCounters, flow: str, now: datetime
) -> list[str]:
    """Make dead letters of a flow's queued runs that have failed, without undoing them."""
    failed: list[Any] = connection.execute(
        _SQL["orphans_that_failed"], (FAILED, flow, REGISTERED)
    ).fetchall()
    for seq, run_id, error, was_dead, had_failed, undoes in failed:
        _fail(connection, counters, seq, run_id, error, undoes=undoes, now=now)
        connection.execute(_SQL["supersede_step_of"], (seq, error))
        counters.move(RunState.QUEUED, RunState.FAILED)
        if not was_dead:
            counters.add_dead_letters(flow)
        if undoes and not (was_dead and had_failed):
            counters.add_not_undone(flow)
    return [row[1] for row in failed]


def fail_queued(
    connection: apsw.Connection,
    counters: RunCounters,
    failures: FailureCounts,
    seq: int,
    error: RunError,
    now: datetime,
) -> list[Run]:
    """Make a dead letter of a run that does not run, without undoing it.

    Returns it, then the runs that were cancelled with it, for the owner of the runs; nothing if it
    runs or has ended.
    """
    row: Any = connection.execute(_SQL["not_running"], (seq, REGISTERED)).fetchone()
    if row is None:
        return []
    run_id, flow, state, was_dead, had_failed, undoes = row
    packed = pack_error(error)
    cancelled = _fail(connection, counters, seq, run_id, packed, undoes=undoes, now=now)
    counters.move(state, RunState.FAILED)
    if not was_dead:
        counters.add_dead_letters(flow)
        failures.failed(flow, error, run_id, micros(now))
    if undoes and not (was_dead and had_failed):
        counters.add_not_undone(flow)
    failed: Any = connection.execute(_RUN, (seq,)).fetchone()
    return [run_from(failed), *cancelled]


def _fail(
    connection: apsw.Connection,
    counters: RunCounters,
    seq: int,
    run_id: str,
    error: str | None,
    *,
    undoes: bool,
    now: datetime,
) -> list[Run]:
    """End a run as failed, and cancel the children it waits for; returns all cancelled runs."""
    because = f"run {run_id}, which waits for it, has ended"
    cancelled = operations.cancel_children(connection, counters, seq, now, reason=because)
    waits.delete(connection, [seq])
    waits.run_ended(connection, run_id, micros(now))
    run_keys.remove(connection, [seq])
    connection.execute(_SQL["fail"], (seq, micros(now), error, undoes))
    return cancelled


def rename_flow(connection: apsw.Connection, counters: RunCounters, was: str, name: str) -> int:
    """Give a flow's unfinished runs, dead letters and open windows to its new name.

    What operators have set goes with them.

    A run stays where it is when the new name has a run of the same event.
    """
    dead, not_undone = _dead_letters(connection, was)
    starts.rename_flow(connection, was, name)
    flow_state.rename_flow(connection, was, name)
    renamed = 0
    for which in ("rename_dead", "rename_unfinished"):
        connection.execute(_SQL[which], (was, name))
        renamed += connection.changes()
    run_keys.rename(connection, was, name)
    connection.execute(_CONDITIONS["rename_unique"], (was, name))
    pauses.rename_flow(connection, was, name)
    overrides.rename_flow(connection, was, name)
    alerts.rename_flow(connection, was, name)
    connection.execute(_WINDOWS["rename"], (was, name))
    connection.execute(_WINDOWS["rename_opened"], (opened_mark(was), opened_mark(name)))
    if dead:
        dead_left, not_undone_left = _dead_letters(connection, was)
        for flow, sign in ((was, -1), (name, 1)):
            counters.add_dead_letters(flow, sign * (dead - dead_left))
            counters.add_not_undone(flow, sign * (not_undone - not_undone_left))
    return renamed


def _dead_letters(connection: apsw.Connection, flow: str) -> tuple[int, int]:
    """Return how many dead letters a flow has, and how many of them are not undone."""
    dead, not_undone = connection.execute(_SQL["dead_letters"], (flow,)).fetchone() or (0, 0)
    return int(dead), int(not_undone)
