"""Steps: the job that records one, the statement and the rows it is written with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from turnout.service.domain.units import EPOCH, MICROSECOND
from turnout.service.journal.records import Claim, RecordedArguments, StepRecord

from .bulk import for_each
from .columns import overwritten, selected
from .values import (
    error_from,
    instant,
    instant_or_none,
    pack_error,
    storable,
)
from .writer import Job


class StepRow(NamedTuple):
    """The columns of the table `steps` that hold a `StepRecord`."""

    key: str
    task: str
    state: str
    tries: int
    started_at: int
    finished_at: int | None
    encoding: str
    result: bytes | None
    error: str | None
    superseded: int
    origin: str | None
    blob: str | None
    in_error_handler: int
    arguments_digest: str | None
    arguments: str | None


COLUMNS = StepRow._fields
_CLAIMED = ("run_seq", "token", *COLUMNS)
"""The values of `StepJob.row`: a step and the claim it is recorded under."""

RECORD = for_each(
    # CROSS JOIN fixes the order, so that rows are inserted in the order they were recorded. Only
    # try numbers, waits and superseded errors are overwritten, never facts.
    f"""
    INSERT INTO steps (run_seq, {", ".join(COLUMNS)})
    SELECT given.run_seq, {selected(COLUMNS, "given")}
    FROM given CROSS JOIN runs
    WHERE runs.seq = given.run_seq AND runs.token = given.token AND runs.state = 'running'
    ON CONFLICT (run_seq, key) DO UPDATE SET {overwritten(COLUMNS, ("key",))}
    WHERE steps.state IN ('retrying', 'waiting') OR steps.superseded = 1
    """,
    _CLAIMED,
)


class StepJob(Job):
    """Record a step under a claim."""

    __slots__ = ("claim", "record", "row")

    def __init__(self, claim: Claim, step: StepRecord) -> None:
        self.claim = claim
        self.record = step
        arguments, finished_at = step.arguments, step.finished_at
        self.row: tuple[Any, ...] = (  # a `StepRow` of its own would take four times as long
            claim.run_seq,
            claim.token,
            step.key,
            step.task,
            "waiting" if step.state == "dropped" else step.state,
            step.tries,
            (step.started_at - EPOCH) // MICROSECOND,
            None if finished_at is None else (finished_at - EPOCH) // MICROSECOND,
            step.encoding,
            step.result,
            None if step.error is None else pack_error(step.error),
            step.superseded,
            step.origin,
            step.blob,
            step.in_error_handler,
            None if arguments is None else arguments.digest,
            None if arguments is None else storable(arguments.words),
        )


def step_from(values: Sequence[Any]) -> StepRecord:
    """Return the step of a row, given as the values of its columns."""
    row = StepRow(*values)
    is_dropped = row.state == "waiting" and row.finished_at is not None
    return StepRecord(
        key=row.key,
        task=row.task,
        state="dropped" if is_dropped else row.state,  # type: ignore[arg-type]  # the table checks it
        tries=row.tries,
        started_at=instant(row.started_at),
        finished_at=instant_or_none(row.finished_at),
        encoding=row.encoding,  # type: ignore[arg-type]  # the table checks it
        result=row.result,
        error=error_from(row.error),
        superseded=bool(row.superseded),
        origin=row.origin,
        blob=row.blob,
        in_error_handler=bool(row.in_error_handler),
        arguments=(
            None
            if row.arguments_digest is None
            else RecordedArguments(row.arguments_digest, row.arguments or "")
        ),
    )
