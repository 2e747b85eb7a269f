"""What operators ask of single runs: cancel, retry, drop, replay.

Each function writes inside the transaction it is called in, checks the one transition table, and
returns the run as it now is.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import apsw

from turnout.service.errors import NotFound, Refused
from turnout.service.run import FINISHED, UNFINISHED, Run, RunState, check_transition

from . import waits
from .intake import Intake
from .records import NewRun
from .rows import RUN_COLUMNS, RUN_SOURCE, micros, run_from
from .tally import Tally


def cancel(connection: apsw.Connection, tally: Tally, run_id: str, now: datetime) -> Run:
    """Cancel an unfinished run, and first the children it waits for.

    What their attempts still write is refused from here on.
    """
    run = _run(connection, run_id)
    if run.state not in UNFINISHED:
        raise Refused(f"run {run.id} already {run.state}; only an unfinished run can be cancelled")
    check_transition(run.id, run.state, RunState.CANCELLED)
    for _seq, child in waits.children(connection, run.seq):
        cancel(connection, tally, child, now)
    waits.forget(connection, [run.seq])
    waits.run_ended(connection, run.id, micros(now))
    connection.execute(
        "UPDATE runs SET state = 'cancelled', finished_at = ?2 WHERE seq = ?1",
        (run.seq, micros(now)),
    )
    tally.moved(run.state, RunState.CANCELLED)
    return _run(connection, run_id)


def retry(
    connection: apsw.Connection, tally: Tally, run_id: str, from_step: str | None, now: datetime
) -> Run:
    """Queue a finished run again, without the steps recorded at and after `from_step`.

    Waits that were not over begin anew.
    A step is named by its key, or by its task for the first call of it.
    """
    run = _run(connection, run_id)
    if run.state not in FINISHED:
        raise Refused(f"run {run.id} is {run.state}; only a finished run can be retried")
    check_transition(run.id, run.state, RunState.QUEUED)
    _drop_ending(connection, run)
    connection.execute("DELETE FROM steps WHERE run_seq = ? AND state = 'waiting'", (run.seq,))
    if from_step is not None:
        _drop_steps(connection, run, from_step)
    connection.execute(
        "UPDATE runs SET state = 'queued', attempts = 0, dead = 0, blames = 0, due_at = ?2,"
        " started_at = NULL, finished_at = NULL, result = NULL, error = NULL, reason = NULL"
        " WHERE seq = ?1",
        (run.seq, micros(now)),
    )
    tally.moved(run.state, RunState.QUEUED)
    if run.dead:
        tally.died(run.flow, -1)
    return _run(connection, run_id)


def answer(
    connection: apsw.Connection, run_id: str, key: str | None, said: bytes, now: datetime
) -> str:
    """Keep an approver's answer for the run's open approval."""
    run = _run(connection, run_id)
    return waits.answer(connection, run.seq, run.id, key, said, micros(now))


def drop(connection: apsw.Connection, tally: Tally, run_id: str) -> Run:
    """Take a dead letter off the list; it is pruned like any failed run."""
    run = _run(connection, run_id)
    if not run.dead:
        raise Refused(f"run {run.id} is not a dead letter; it is {run.state}")
    connection.execute("UPDATE runs SET dead = 0 WHERE seq = ?", (run.seq,))
    tally.died(run.flow, -1)
    return _run(connection, run_id)


def replay(
    connection: apsw.Connection,
    tally: Tally,
    intake: Intake,
    event_seq: int,
    runs: Sequence[NewRun],
    now: datetime,
) -> list[str]:
    """Start new runs of a stored event, numbered one above its highest replay."""
    found = connection.execute(
        "SELECT coalesce(max(r.replay), 0) + 1 FROM events AS e"
        " LEFT JOIN runs AS r ON r.event_seq = e.seq WHERE e.seq = ? GROUP BY e.seq",
        (event_seq,),
    ).get
    if found is None:
        raise NotFound(f"there is no event {event_seq} in the journal; it may have been pruned")
    for run in runs:
        run.replay = found
    values: list[object] = []
    ids = intake.birth(values, runs, event_seq, micros(now), tally)
    intake.insert_runs(values)
    connection.execute("UPDATE events SET unmatched = NULL WHERE seq = ?", (event_seq,))
    return list(ids)


def _drop_ending(connection: apsw.Connection, run: Run) -> None:
    """Forget that the run had failed (`ending` records it); what is undone stays undone."""
    undone = connection.execute(
        "SELECT 1 FROM steps WHERE run_seq = ? AND key >= '~undo' AND key < '~undp'", (run.seq,)
    ).get
    if undone is not None:
        raise Refused(
            f"the steps of run {run.id} were undone when it failed, so it cannot go on after them; "
            f"replay its event instead: turnout replay {run.event_id}"
        )
    connection.execute(
        "DELETE FROM steps WHERE run_seq = ? AND key >= '~' AND key < '\x7f'", (run.seq,)
    )


def _drop_steps(connection: apsw.Connection, run: Run, step: str) -> None:
    first = connection.execute(
        "SELECT min(seq) FROM steps WHERE run_seq = ?1 AND key = ?2"
        " UNION ALL SELECT min(seq) FROM steps WHERE run_seq = ?1 AND task = ?2",
        (run.seq, step),
    ).fetchall()
    seqs = [row[0] for row in first if row[0] is not None]
    if not seqs:
        raise NotFound(f"run {run.id} has no recorded step {step!r}")
    connection.execute("DELETE FROM steps WHERE run_seq = ? AND seq >= ?", (run.seq, seqs[0]))


def _run(connection: apsw.Connection, run_id: str) -> Run:
    row = connection.execute(
        f"SELECT {RUN_COLUMNS} FROM {RUN_SOURCE} WHERE r.id = ?",
        (run_id,),
    ).fetchone()
    if row is None:
        raise NotFound(f"there is no run {run_id} in the journal")
    return run_from(row)
