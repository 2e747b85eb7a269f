"""The rows of steps: their columns, the statement that records them, and both conversions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from turnout.service.journal.records import Claim, RecordedArguments, StepRecord

from .bulk import BulkStatement
from .columns import overwritten, selected
from .values import (
    error_from,
    instant,
    instant_or_none,
    micros,
    micros_or_none,
    pack_error,
    storable,
)


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
    spilled: str | None
    aside: int
    digest: str | None
    called: str | None


COLUMNS = StepRow._fields
_CLAIMED = ("run_seq", "token", *COLUMNS)
"""What is written: a step and the claim it is recorded under."""

RECORD = BulkStatement(
    # CROSS JOIN fixes the order, so that rows are inserted in the order they were recorded. Only
    # try numbers, waits and superseded errors are overwritten, never facts.
    f"""
    WITH given ({", ".join(_CLAIMED)}) AS ({{rows}})
    INSERT INTO steps (run_seq, {", ".join(COLUMNS)})
    SELECT given.run_seq, {selected(COLUMNS, "given")}
    FROM given CROSS JOIN runs
    WHERE runs.seq = given.run_seq AND runs.token = given.token AND runs.state = 'running'
    ON CONFLICT (run_seq, key) DO UPDATE SET {overwritten(COLUMNS, ("key",))}
    WHERE steps.state IN ('retrying', 'waiting') OR steps.superseded = 1
    """,
    _CLAIMED,
)


def step_row(step: StepRecord) -> StepRow:
    """Return a step as a row."""
    arguments = step.arguments
    return StepRow(
        key=step.key,
        task=step.task,
        state=step.state,
        tries=step.tries,
        started_at=micros(step.started_at),
        finished_at=micros_or_none(step.finished_at),
        encoding=step.encoding,
        result=step.result,
        error=None if step.error is None else pack_error(step.error),
        superseded=int(step.superseded),
        origin=step.origin,
        spilled=step.blob,
        aside=int(step.in_error_handler),
        digest=None if arguments is None else arguments.digest,
        called=None if arguments is None else storable(arguments.words),
    )


def claimed_row(claim: Claim, row: StepRow) -> tuple[Any, ...]:
    """Return the values that record a step under a claim."""
    return (claim.run_seq, claim.token, *row)


def step_from(values: Sequence[Any]) -> StepRecord:
    """Return the step of a row, given as the values of its columns."""
    row = StepRow(*values)
    return StepRecord(
        key=row.key,
        task=row.task,
        state=row.state,  # type: ignore[arg-type]  # the table checks it
        tries=row.tries,
        started_at=instant(row.started_at),
        finished_at=instant_or_none(row.finished_at),
        encoding=row.encoding,  # type: ignore[arg-type]  # the table checks it
        result=row.result,
        error=error_from(row.error),
        superseded=bool(row.superseded),
        origin=row.origin,
        blob=row.spilled,
        in_error_handler=bool(row.aside),
        arguments=None if row.digest is None else RecordedArguments(row.digest, row.called or ""),
    )
