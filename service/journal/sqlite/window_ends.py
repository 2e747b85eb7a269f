"""What is left of a window whose run is cancelled before it has fired."""

from __future__ import annotations

from typing import Any

import apsw

from turnout.service.domain.decisions import Reason
from turnout.service.journal.records import Decision

from .decisions import pack_decisions
from .statements import load

_SQL = load("windows")


def drop_window(connection: apsw.Connection, run_seq: int, at: int) -> None:
    """Drop the open window that a run has waited for; each member gets a decision."""
    row: Any = connection.execute(_SQL["open_of_run"], (run_seq,)).fetchone()
    if row is None:
        return
    seq, window_id, flow, run_id = row
    facts = {"window": window_id, "run": run_id}
    made = Decision(flow, Reason.DROPPED, "the run that waited for the window was cancelled", facts)
    connection.execute(_SQL["drop"], (seq, at))
    connection.execute(_SQL["decide"], (seq, pack_decisions((made,), at), None, None))
