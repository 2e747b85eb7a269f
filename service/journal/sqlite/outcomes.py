"""Outcomes: the job that records the end of an attempt, and the rows it is written with."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from turnout.service.domain.run import FINISHED, Outcome, RunState
from turnout.service.domain.units import EPOCH, MICROSECOND
from turnout.service.journal.records import AttemptRecord, ClaimedRun

from .bulk import for_each, insert
from .values import error_from, instant, instant_or_none, pack_error, storable
from .writer import Job

_FINISHED = frozenset(state.value for state in FINISHED)


class OutcomeRow(NamedTuple):
    """What the end of an attempt changes in a run that is held under a claim."""

    run_seq: int
    token: int
    state: str
    counts: int
    due_at: int | None
    started_at: int
    finished_at: int | None
    result: bytes | None
    error: str | None
    reason: str | None
    dead: int
    repeats: int


RECORD = for_each(
    """
    UPDATE runs SET
        state = given.state,
        attempts = attempts + given.counts,
        due_at = iif(given.state = 'waiting', given.due_at, coalesce(given.due_at, runs.due_at)),
        started_at = given.started_at,
        finished_at = given.finished_at,
        result = given.result,
        error = given.error,
        reason = given.reason,
        dead = given.dead,
        consecutive_crashes = iif(given.repeats, consecutive_crashes, 0)
    FROM given
    WHERE runs.seq = given.run_seq AND runs.token = given.token AND runs.state = 'running'
    """,
    OutcomeRow._fields,
)


class OutcomeJob(Job):
    """Record an attempt's outcome; `has_waits` says that the run may have open waits.

    The result are the runs that were cancelled with it: the children it waited for.
    """

    __slots__ = ("at", "has_waits", "outcome", "row", "run")

    def __init__(
        self,
        run: ClaimedRun,
        outcome: Outcome,
        started_at: datetime,
        now: datetime,
        *,
        has_waits: bool,
    ) -> None:
        self.run = run
        self.outcome = outcome
        self.at = at = (now - EPOCH) // MICROSECOND
        self.has_waits = has_waits
        state = str(outcome.state)
        finished = state in _FINISHED
        # A dead letter whose undo an operator has retried stays one until that has succeeded.
        failed = state == "failed" and not (run.dead and outcome.undo == "done")
        due_at = None if outcome.due_at is None else (outcome.due_at - EPOCH) // MICROSECOND
        # In the order of the fields: named arguments of a tuple take three times as long.
        self.row = OutcomeRow(
            run.claim.run_seq,
            run.claim.token,
            state,
            outcome.counts,
            at if state == "queued" else due_at,
            (started_at - EPOCH) // MICROSECOND,
            at if finished else None,
            outcome.result,
            None if outcome.error is None else pack_error(outcome.error),
            storable(outcome.reason) if outcome.reason else None,
            failed or (run.dead and not finished),
            outcome.repeats,
        )

    @property
    def ends_children(self) -> bool:
        """Whether the run may wait for children, which end with it."""
        return self.has_waits and self.row.finished_at is not None


# ---------------------------------------------------------------- attempts


class AttemptRow(NamedTuple):
    """The columns of the table `attempts`."""

    run_seq: int
    attempt: int
    started_at: int
    finished_at: int | None
    state: str
    error: str | None
    log: bytes | None


INSERT_ATTEMPTS = insert("attempts", AttemptRow._fields)


def attempt_row(job: OutcomeJob) -> AttemptRow | None:
    """Return the record of an attempt that failed or wrote log lines; others have none."""
    row, log = job.row, job.outcome.log
    if not (row.error or log or row.state in ("failed", "retrying")):
        return None
    attempt = job.run.attempt
    return AttemptRow(row.run_seq, attempt, row.started_at, job.at, row.state, row.error, log)


def attempt_from(values: Sequence[Any]) -> AttemptRecord:
    """Return the attempt of a row, given as the values of its columns."""
    row = AttemptRow(*values)
    return AttemptRecord(
        attempt=row.attempt,
        started_at=instant(row.started_at),
        finished_at=instant_or_none(row.finished_at),
        state=RunState(row.state),
        error=error_from(row.error),
        log=row.log,
    )
