"""The rows of runs: their columns, the statement that inserts them, and the conversions.

A run is written three times: when it is made (`RunRow`), when it is claimed (`claims`), and when
its attempt ends (`outcomes`). What people see of it is a `StoredRun`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from turnout.service.domain.run import Keys, Run, RunState
from turnout.service.journal.records import (
    FAILED,
    REGISTERED,
    EndedRun,
    NewRun,
    Queued,
)

from .bulk import insert
from .columns import selected
from .crash_isolation import is_isolated
from .values import (
    dump,
    error_from,
    instant,
    instant_or_none,
    micros,
    pack_error,
)

UNFINISHED_STATES = "('scheduled', 'queued', 'running', 'retrying', 'waiting')"
"""The states of unfinished runs, for `IN`."""

LISTED_RESULT_BYTES = 4096
"""A larger result is left out of lists: a page of results of a MiB each would fill the memory."""


# ---------------------------------------------------------------- a new run


class RunRow(NamedTuple):
    """The columns of the table `runs` that are written when a run is made."""

    seq: int
    id: str
    event_seq: int
    flow: str
    state: str
    token: int
    order_key: str | None
    keys: str | None
    priority: int | None
    due_at: int | None
    queued_at: int
    started_at: int | None
    claimed_after: int | None
    finished_at: int | None
    error: str | None
    dead: int
    replay: int
    code_version: str


INSERT = insert("runs", RunRow._fields)
INSERT_WINDOWED = insert("runs", (*RunRow._fields, "window_seq"))
"""Inserts the runs of windows: others do not pay for a column that they leave empty."""


def run_row(run: NewRun, event_seq: int, at: int) -> RunRow:
    """Return a new run as a row."""
    state = str(run.state)
    running, dead = state == "running", state == "failed"
    # In the order of the fields: named arguments of a tuple take three times as long.
    return RunRow(
        run.seq,
        run.id,
        event_seq,
        run.flow,
        state,
        running,
        run.order_key,
        None if run.keys is None else dump(run.keys),
        run.priority,
        None if run.due_at is None else micros(run.due_at),
        at,
        at if running else None,
        0 if running else None,
        at if dead else None,
        None if run.error is None else pack_error(run.error),
        dead,
        run.replay,
        run.code_version,
    )


def refused_row(run: NewRun, event_seq: int, at: int) -> RunRow:
    """Return a new run that its conditions refuse as a row: it has ended already."""
    row = run_row(run, event_seq, at)
    return row._replace(
        state=RunState.SKIPPED.value,
        token=0,
        due_at=None,
        started_at=None,
        claimed_after=None,
        finished_at=at,
    )


# ---------------------------------------------------------------- what is read


def keys_from(stored: str | None) -> Keys | None:
    """Return the keys of a run by rule, as they were stored."""
    return None if stored is None else orjson.loads(stored)


def refused_from(stored: str | None) -> tuple[str, str | None] | None:
    """Return why a rule has refused a run, and the run that goes on instead, as stored."""
    if stored is None:
        return None
    refused = orjson.loads(stored)
    return refused["reason"], refused["run"]


class StoredRun(NamedTuple):
    """What is read of a run and its event."""

    seq: int
    arrival: int
    id: str
    flow: str
    state: str
    attempts: int
    crashes: int
    event_id: str
    event_source: str
    trigger: str
    tenant: str
    queued_at: int
    due_at: int | None
    started_at: int | None
    finished_at: int | None
    result: bytes | None
    error: str | None
    reason: str | None
    dead: int
    replay: int
    order_key: str | None
    keys: str | None
    code_version: str
    cancelled_by: str | None
    forced: int | None
    undo: Any
    undo_failed: str | None
    result_bytes: int | None
    events: int
    window_seq: int | None


_ARRIVAL = "coalesce(r.arrival, r.seq)"
_EXPRESSIONS = {
    "arrival": _ARRIVAL,
    "due_at": "iif(r.state = 'scheduled' AND r.due_at IS NULL,"  # when its window fires
    " (SELECT w.due_at FROM windows AS w WHERE w.seq = r.window_seq), r.due_at)",
    "events": "iif(r.window_seq IS NULL, 1,"
    " (SELECT w.members FROM windows AS w WHERE w.seq = r.window_seq))",
    "event_id": "e.id",
    "event_source": "e.source",
    "trigger": "e.trigger",
    "tenant": "e.tenant",
    # An unfinished run whose flow has failed is being undone if there is anything to undo.
    "undo": "CASE WHEN r.finished_at IS NOT NULL THEN r.undo"
    f" WHEN EXISTS (SELECT 1 FROM steps WHERE run_seq = r.seq AND key = '{FAILED}') AND EXISTS"
    f" (SELECT 1 FROM steps WHERE run_seq = r.seq AND task = '{REGISTERED}') THEN 'running' END",
    "undo_failed": "CASE WHEN r.undo = 'failed' THEN (SELECT json_group_array(key) FROM steps"
    " WHERE run_seq = r.seq AND key >= '~undo' AND key < '~undp' AND state = 'failed') END",
    "result_bytes": "length(r.result)",
}
RUN_COLUMNS = selected(StoredRun._fields, "r", **_EXPRESSIONS)
LISTED_RUN_COLUMNS = selected(
    StoredRun._fields,
    "r",
    **_EXPRESSIONS,
    result=f"CASE WHEN length(r.result) <= {LISTED_RESULT_BYTES} THEN r.result END",
)
RUN_SOURCE = "runs AS r JOIN events AS e ON e.seq = r.event_seq"


def run_from(values: Sequence[Any]) -> Run:
    """Return the run of a row, given as the values of `RUN_COLUMNS`."""
    row = StoredRun(*values)
    return Run(
        seq=row.seq,
        arrival=row.arrival,
        id=row.id,
        flow=row.flow,
        state=RunState(row.state),
        attempts=row.attempts,
        crashes=row.crashes,
        event_id=row.event_id,
        event_source=row.event_source,
        trigger=row.trigger,
        tenant=row.tenant,
        queued_at=instant(row.queued_at),
        due_at=instant_or_none(row.due_at),
        started_at=instant_or_none(row.started_at),
        finished_at=instant_or_none(row.finished_at),
        result=row.result,
        error=error_from(row.error),
        reason=row.reason,
        dead=bool(row.dead),
        replay=row.replay,
        order_key=row.order_key,
        keys=keys_from(row.keys),
        code_version=row.code_version,
        cancelled_by=row.cancelled_by,
        forced=bool(row.forced),
        undo=row.undo,
        undo_failed=tuple(orjson.loads(row.undo_failed)) if row.undo_failed else (),
        result_bytes=row.result_bytes,
        events=row.events,
        window_seq=row.window_seq,
    )


class QueuedRow(NamedTuple):
    """What the dispatcher holds of a run that is not running."""

    seq: int
    arrival: int
    id: str
    flow: str
    order_key: str | None
    keys: str | None
    priority: int | None
    due_at: int | None
    queued_at: int
    state: str
    token: int
    consecutive_crashes: int
    retries_step: int


QUEUED_COLUMNS = selected(
    QueuedRow._fields,
    "r",
    arrival=_ARRIVAL,
    retries_step="r.state = 'retrying' AND EXISTS"
    " (SELECT 1 FROM steps WHERE run_seq = r.seq AND state = 'retrying')",
)
SUSPENDED = f"""
SELECT json_group_array(json_array({QUEUED_COLUMNS})) FROM runs AS r INDEXED BY runs_by_state
WHERE (r.state = 'retrying' OR r.state = 'waiting')
    AND r.flow IN (SELECT value FROM json_each(?1))
"""
"""The retrying and waiting runs of flows (?1, a JSON array)."""


def queued_from(values: Sequence[Any]) -> Queued:
    """Return the dispatcher's view of a run, given as the values of its columns."""
    row = QueuedRow(*values)
    return Queued(
        seq=row.seq,
        arrival=row.arrival,
        id=row.id,
        flow=row.flow,
        order_key=row.order_key,
        keys=keys_from(row.keys),
        priority=row.priority,
        due_at=instant_or_none(row.due_at),
        queued_at=instant(row.queued_at),
        begun=row.token > 0,
        resumes=row.state == "waiting" or bool(row.retries_step),
        isolated=is_isolated(row.consecutive_crashes),
    )


def ended_run(values: Sequence[Any]) -> EndedRun:
    """Return an ended run of the statement `history`."""
    run_id, state, result, left_out, error, reason, queued_at, finished_at = values
    return EndedRun(
        run_id,
        RunState(state),
        result,
        bool(left_out),
        error_from(error),
        reason,
        instant(queued_at),
        instant(finished_at),
    )
