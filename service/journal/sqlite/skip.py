"""Ends runs by a rule of their flow: queued ones as skipped, and older ones for a newer one.

Each function writes inside the transaction it is called in. `runs.refused` tells such a run from
one that its own code skips: the run that awaits it raises `Refused`, and a file of its event stays.
"""

from __future__ import annotations

from typing import Any

import apsw

from turnout.service.domain.run import Run, RunState
from turnout.service.journal.records import Decision

from . import run_keys, waits
from .counters import RunCounters
from .decisions import add_decisions
from .runs import RUN_COLUMNS, RUN_SOURCE, run_from
from .statements import load
from .values import dump, storable

_SQL = load("conditions")
_RUN = f"SELECT {RUN_COLUMNS} FROM {RUN_SOURCE} WHERE r.seq = ?"


def skip(
    connection: apsw.Connection, counters: RunCounters, run_seq: int, made: Decision, at: int
) -> Run | None:
    """End a queued run that was never claimed as skipped; None if it is not queued any more.

    The decision is stored with its event; its fact `other` names the run that goes on instead.
    Who awaits the run is woken. The caller tells the owner of the runs (`Dispatcher.skipped`).
    """
    values = (run_seq, at, storable(made.detail), refused_text(made))
    connection.execute(_SQL["skip"], values)
    if not connection.changes():
        return None
    counters.move(RunState.QUEUED, RunState.SKIPPED)
    run_keys.remove(connection, [run_seq])
    waits.delete(connection, [run_seq])
    row: Any = connection.execute(_RUN, (run_seq,)).fetchone()
    run = run_from(row)
    waits.run_ended(connection, run.id, at)
    event_seq: int = connection.execute(_SQL["event_of"], (run_seq,)).get
    add_decisions(connection, event_seq, (made,), at)
    return run


def store_refusal(
    connection: apsw.Connection, run_seq: int, run_id: str, event_seq: int, made: Decision, at: int
) -> None:
    """Store why a new run, just inserted as skipped, was refused, and wake who awaits it."""
    values = (run_seq, storable(made.detail), refused_text(made))
    connection.execute(_SQL["refuse"], values)
    waits.run_ended(connection, run_id, at)
    add_decisions(connection, event_seq, (made,), at)


def refused_text(made: Decision) -> str:
    """Return what `runs.refused` says of a decision."""
    return dump({"reason": made.reason, "run": made.facts.get("other")})
