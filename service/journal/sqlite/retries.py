"""An operator's retry obeys the mode of its flow, as a new run does, unless it is forced.

Written inside the transaction it is called in. Not here: what a retry does to a run (`operations`).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

import apsw

from turnout.service.domain.conditions import Mode
from turnout.service.domain.errors import Refused
from turnout.service.domain.run import FINISHED, Run, RunState
from turnout.service.journal.records import Retried

from . import operations, rescue, run_keys
from .append import Intake
from .conditions import Verdict
from .counters import RunCounters
from .older_runs import OlderRuns
from .runs import RUN_COLUMNS, RUN_SOURCE, run_from
from .statements import load
from .values import micros

_FORCE_AGAIN = load("conditions")["force_again"]
_RUN = f"SELECT {RUN_COLUMNS} FROM {RUN_SOURCE} WHERE r.id = ?"


def retry(
    connection: apsw.Connection,
    counters: RunCounters,
    intake: Intake,
    run_id: str,
    from_step: str | None,
    now: datetime,
    *,
    mode: Mode | None,
    force: bool,
    flow: str | None,
    blocks: bool,
) -> Retried:
    """Queue a finished run again as the mode lets it; raises `Refused`.

    `flow` is what its flow is called now. From now on the run is called so too: a new run of the
    flow would not find it under the old name.
    """
    before = _run(connection, run_id)
    again = partial(
        operations.retry, connection, counters, intake, run_id, from_step, now,
        flow=flow, blocks=blocks,
    )  # fmt: skip
    if before is None or mode is None or not _is_new_work(before):
        retried = Retried(run=again())
    elif force:
        retried = Retried(run=_beside_others(connection, again()))
    else:
        verdict = intake.conditions.of_retry(replace(before, flow=flow or before.flow), mode)
        _refuse(before, mode, verdict)
        retried = Retried(run=before)
        OlderRuns(connection, counters, retried, micros(now)).end_for(before, verdict)
        retried.run = again()
    run = retried.run
    if flow is not None and run.flow != flow and run.state is RunState.QUEUED:
        rescue.rename_flow(connection, counters, run.flow, flow)
        retried.run = _run(connection, run_id) or run
    return retried


def _beside_others(connection: apsw.Connection, run: Run) -> Run:
    """Take the key of the mode from a run, so that it runs beside others of that key."""
    run_keys.remove(connection, [run.seq])
    connection.execute(_FORCE_AGAIN, (run.seq,))
    run_keys.add(connection, [run.seq])
    return _run(connection, run.id) or run


def _refuse(run: Run, mode: Mode, verdict: Verdict) -> None:
    """Raise `Refused` if the mode does not let a run start again now."""
    if verdict.refused is not None:
        raise Refused(
            f"run {run.id} cannot be retried: {verdict.refused.detail} (mode={mode!r} of flow "
            f"{run.flow}); retry it when that has ended, or with --force beside it"
        )


def _run(connection: apsw.Connection, run_id: str) -> Run | None:
    row: Any = connection.execute(_RUN, (run_id,)).fetchone()
    return None if row is None else run_from(row)


def _is_new_work(run: Run) -> bool:
    """Whether a retry starts the run again, where it would not only try or undo something now."""
    return run.state in FINISHED and run.undo != "failed"
