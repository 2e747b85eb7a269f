"""Operators' writes to single runs: cancel, retry, drop, replay, answer.

Each function writes inside the transaction it is called in, checks the transition table, and
returns the run as it is now.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

import apsw

from turnout.service.domain.errors import Expired, NotFound, Refused
from turnout.service.domain.run import (
    CANCELLED,
    FINISHED,
    PROCESS_DIED,
    UNFINISHED,
    Run,
    RunError,
    RunState,
    check_transition,
)
from turnout.service.journal.records import FAILED, REGISTERED, Appended, Claim, NewRun, UsedLink

from . import run_keys, waits
from .counters import RunCounters
from .outcomes import INSERT_ATTEMPTS, AttemptRow
from .runs import RUN_COLUMNS, RUN_SOURCE, run_from
from .statements import load
from .values import micros, pack_error, storable
from .window_ends import drop_window

if TYPE_CHECKING:  # it cancels runs, by `cancel`
    from .append import Intake

_SQL = load("operations")
_RUN = f"SELECT {RUN_COLUMNS} FROM {RUN_SOURCE} WHERE r.id = ?"


def cancel(
    connection: apsw.Connection,
    counters: RunCounters,
    run_id: str,
    now: datetime,
    *,
    reason: str = "",
    by: str = "",
) -> list[Run]:
    """Cancel the children an unfinished run waits for, then the run; returns all cancelled runs.

    Later writes of their attempts are refused. A run with something to undo is queued for that,
    and ends as cancelled once it is undone.
    """
    run = _run(connection, run_id)
    if run.state not in UNFINISHED:
        raise Refused(f"run {run.id} already {run.state}; only an unfinished run can be cancelled")
    check_transition(run.id, run.state, RunState.CANCELLED)
    undoes = _has_undo(connection, run)
    if undoes and _has_failed(connection, run):
        raise Refused(
            f"run {run.id} has ended and is being undone, which cannot be cancelled; "
            f"see turnout show {run.id}"
        )
    because = f"run {run.id}, which waits for it, was cancelled"
    children = cancel_children(connection, counters, run.seq, now, reason=because, by=by)
    if _is_amid_attempt(connection, run):
        _keep_attempt(connection, run, now)
    why = (run.seq, storable(reason) or None, storable(by) or None)
    connection.execute(_SQL["say_why"], why)
    if undoes:
        _queue_undo(connection, counters, run, reason, micros(now))
    else:
        _end(connection, counters, run, micros(now))
    return [_run(connection, run_id), *children]


def end_children(
    connection: apsw.Connection, counters: RunCounters, claim: Claim, now: datetime
) -> tuple[list[Run], list[str]]:
    """Cancel the children a failed run waits for, and delete its other waits.

    Returns the cancelled runs, and the keys of the steps whose children are still being undone.
    """
    because = f"run {claim.run_id}, which waits for it, has failed"
    cancelled = cancel_children(connection, counters, claim.run_seq, now, reason=because)
    waits.keep_only_children(connection, claim.run_seq)
    return cancelled, waits.keys(connection, claim.run_seq)


def cancel_children(
    connection: apsw.Connection, counters: RunCounters, run_seq: int, now: datetime, *, reason: str,
    by: str = "",
) -> list[Run]:  # fmt: skip
    """Cancel the children a run waits for; returns all cancelled runs."""
    children = [child for _seq, child in waits.children(connection, run_seq)]
    return cancel_all(connection, counters, children, now, reason=reason, by=by)


def cancel_all(
    connection: apsw.Connection, counters: RunCounters, run_ids: Iterable[str], now: datetime, *,
    reason: str, by: str = "",
) -> list[Run]:  # fmt: skip
    """Cancel unfinished runs, except those that are being undone; returns all cancelled runs."""
    cancelled = []
    for run_id in run_ids:
        with suppress(Refused):  # it is already being undone
            cancelled += cancel(connection, counters, run_id, now, reason=reason, by=by)
    return cancelled


def _end(connection: apsw.Connection, counters: RunCounters, run: Run, at: int) -> None:
    """End a run as cancelled."""
    waits.delete(connection, [run.seq])
    waits.run_ended(connection, run.id, at)
    connection.execute(_SQL["cancel"], (run.seq, at))
    if run.keys is not None:
        run_keys.remove(connection, [run.seq])
    counters.move(run.state, RunState.CANCELLED)
    if run.state is RunState.SCHEDULED:
        drop_window(connection, run.seq, at)


def _queue_undo(
    connection: apsw.Connection, counters: RunCounters, run: Run, reason: str, at: int
) -> None:
    """Queue a cancelled run for its undo, which begins when its children are undone.

    Only its waits for those children stay.
    """
    _record_failure(connection, run.seq, RunError(CANCELLED, reason), at)
    waits.keep_only_children(connection, run.seq)
    connection.execute(_SQL["queue"], (run.seq, at))
    counters.move(run.state, RunState.QUEUED)


def _keep_attempt(connection: apsw.Connection, run: Run, now: datetime) -> None:
    """Count the attempt that a cancel ends, and record it."""
    connection.execute(_SQL["count_attempt"], (run.seq,))
    started_at, at = micros(run.started_at or now), micros(now)
    row = AttemptRow(run.seq, run.attempts + 1, started_at, at, "cancelled", None, None)
    INSERT_ATTEMPTS.run(connection, list(row))


def retry(
    connection: apsw.Connection,
    counters: RunCounters,
    intake: Intake,
    run_id: str,
    from_step: str | None,
    now: datetime,
    *,
    flow: str | None,
    blocks: bool,
) -> Run:
    """Queue a finished run again, without the steps recorded at and after `from_step`.

    Open waits start again. A run whose undo has failed only continues its undo. A run that waits
    for its next try, or for that of a step, becomes due now. A step is named by its key, or by its
    task for the first call of it.

    A run with an ordering key is queued behind all others of its flow, which is called `flow` now;
    a dead letter that `blocks` its key keeps its place.
    """
    run = _run(connection, run_id)
    if run.state not in FINISHED:
        return _retry_now(connection, run, from_step, micros(now))
    check_transition(run.id, run.state, RunState.QUEUED)
    if run.undo == "failed":
        _undo_again(connection, counters, run, from_step, micros(now))
    else:
        _start_again(connection, counters, run, from_step, micros(now))
    if run.order_key is not None:
        level = run_keys.class_of_key(connection, flow or run.flow, run.order_key)
        number = None if blocks and run.dead else intake.next_arrival()
        connection.execute(_SQL["arrive"], (run.seq, number, level))
    run_keys.add(connection, [run.seq])
    counters.move(run.state, RunState.QUEUED)
    return _run(connection, run_id)


def _start_again(
    connection: apsw.Connection, counters: RunCounters, run: Run, from_step: str | None, at: int
) -> None:
    """Queue a run as if it were new, with the steps that it keeps."""
    _delete_failure(connection, run)
    if from_step is not None:
        _drop_steps(connection, run, from_step)
    connection.execute(_SQL["delete_waiting_steps"], (run.seq,))
    connection.execute(_SQL["queue_again"], (run.seq, at))
    if run.dead:
        counters.add_dead_letters(run.flow, -1)


def _retry_now(connection: apsw.Connection, run: Run, from_step: str | None, at: int) -> Run:
    """Make a run due that waits for its next try."""
    connection.execute(_SQL["try_step_now"], (run.seq, run.state))
    waits_for_try = run.state is RunState.RETRYING or connection.changes() > 0
    if from_step is not None or not waits_for_try:
        raise Refused(
            f"run {run.id} is {run.state}; only a finished run can be retried"
            f"{' from a step' if waits_for_try else ', or one that waits for its next try'}"
        )
    connection.execute(_SQL["make_due"], (run.seq, at))
    return _run(connection, run.id)


def _undo_again(
    connection: apsw.Connection, counters: RunCounters, run: Run, from_step: str | None, at: int
) -> None:
    """Queue a run for the undo steps that are not done; it stays a dead letter until they are."""
    if from_step is not None:
        raise Refused(
            f"run {run.id} is not undone yet, and its undo must be finished first: "
            f"turnout retry {run.id}"
        )
    connection.execute(_SQL["undo_steps_again"], (run.seq,))
    _record_failure(connection, run.seq, run.error or RunError(CANCELLED, run.reason or ""), at)
    connection.execute(_SQL["count_deaths"], (run.seq, FAILED, PROCESS_DIED))
    connection.execute(_SQL["queue_undo"], (run.seq, at))
    if not run.dead:  # it was dropped
        counters.add_dead_letters(run.flow)
        counters.add_not_undone(run.flow)


def _record_failure(connection: apsw.Connection, run_seq: int, error: RunError, at: int) -> None:
    """Record that a run has failed, so that only its undo and its hook are left."""
    connection.execute(_SQL["record_failure"], (run_seq, FAILED, at, pack_error(error)))


def answer(
    connection: apsw.Connection,
    run_id: str,
    key: str | None,
    said: bytes,
    link: UsedLink | None,
    now: datetime,
) -> str:
    """Store an approver's answer to the open approval, and that its link was used."""
    run = _run(connection, run_id)
    if link is not None:
        connection.execute(_SQL["delete_old_links"], (micros(now),))
        connection.execute(_SQL["use_link"], (link.digest, micros(link.until)))
        if not connection.changes():
            raise Expired("this link was used already; ask for a new one")
    return waits.answer(connection, run.seq, run.id, key, said, micros(now))


def drop(connection: apsw.Connection, counters: RunCounters, run_id: str) -> Run:
    """Take a dead letter off the list; it is then pruned like any failed run."""
    run = _run(connection, run_id)
    if not run.dead:
        raise Refused(f"run {run.id} is not a dead letter; it is {run.state}")
    if run.state not in FINISHED:
        raise Refused(f"run {run.id} is being undone now; drop it if that fails again")
    connection.execute(_SQL["drop"], (run.seq,))
    counters.add_dead_letters(run.flow, -1)
    if run.undo == "failed":
        counters.add_not_undone(run.flow, -1)
    return _run(connection, run_id)


def replay(
    connection: apsw.Connection,
    counters: RunCounters,
    intake: Intake,
    event_seq: int,
    runs: Sequence[NewRun],
    now: datetime,
) -> Appended:
    """Start new runs of a stored event; their `replay` is one above its highest."""
    found = connection.execute(_SQL["next_replay"], (event_seq,)).get
    if found is None:
        raise NotFound(f"there is no event {event_seq} in the journal; it may have been pruned")
    for run in runs:
        run.replay = found
    appended = intake.replay(event_seq, runs, micros(now), counters)
    connection.execute(_SQL["match"], (event_seq,))
    return appended


def _delete_failure(connection: apsw.Connection, run: Run) -> None:
    """Delete the record that the run has failed; refuse when steps were undone."""
    if connection.execute(_SQL["is_undone"], (run.seq,)).get is not None:
        raise Refused(
            f"the steps of run {run.id} were undone when it ended, so it cannot be resumed; "
            f"replay its event instead: turnout replay {run.event_id}"
        )
    connection.execute(_SQL["delete_compensation"], (run.seq,))


def _is_amid_attempt(connection: apsw.Connection, run: Run) -> bool:
    """Whether an attempt of an unfinished run has begun and has no outcome yet."""
    if run.state is RunState.RETRYING:  # the flow is retried, or a step in the middle of an attempt
        return connection.execute(_SQL["has_retrying_step"], (run.seq,)).get is not None
    return run.started_at is not None


def _has_failed(connection: apsw.Connection, run: Run) -> bool:
    return connection.execute(_SQL["has_key"], (run.seq, FAILED)).get is not None


def _has_undo(connection: apsw.Connection, run: Run) -> bool:
    return connection.execute(_SQL["has_task"], (run.seq, REGISTERED)).get is not None


def _drop_steps(connection: apsw.Connection, run: Run, step: str) -> None:
    first = connection.execute(_SQL["first_step"], (run.seq, step)).fetchall()
    seqs = [row[0] for row in first if row[0] is not None]
    if not seqs:
        raise NotFound(f"run {run.id} has no recorded step {step!r}")
    start: int = connection.execute(_SQL["race_of"], (run.seq, seqs[0])).get
    connection.execute(_SQL["delete_steps_from"], (run.seq, start))


def _run(connection: apsw.Connection, run_id: str) -> Run:
    row: Any = connection.execute(_RUN, (run_id,)).fetchone()
    if row is None:
        raise NotFound(f"no run {run_id!r}; `turnout runs` lists them")
    return run_from(row)
