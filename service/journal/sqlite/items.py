"""Single members of a windowed run: those that are tried again alone, and those that have failed.

Each function writes inside the transaction it is called in. Not here: what an author asks
(`steps/items`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import apsw
import orjson

from turnout.service.domain.event import mint_id
from turnout.service.domain.run import Outcome, RunState
from turnout.service.journal.records import ITEMS, ClaimedRun, NewRun, RunMembers, StepRecord

from . import operations
from .counters import RunCounters
from .statements import load
from .values import dump, instant

if TYPE_CHECKING:
    from .append import Intake

_LEAVE = load("record")["leave_items"]


def left(members: RunMembers, recorded: Mapping[str, StepRecord]) -> RunMembers:
    """Return the members that a run is called with now: those that its last mark has left."""
    marks = [step for step in recorded.values() if step.task == ITEMS]
    if not marks:
        return members
    return members.only(orjson.loads(marks[-1].result or b"{}")["left"], len(marks))


def record(
    connection: apsw.Connection,
    counters: RunCounters,
    intake: Intake,
    run: ClaimedRun,
    flow: str,
    outcome: Outcome,
    at: int,
) -> None:
    """Record which members are left, and a dead letter for each that has failed."""
    members = run.members
    if outcome.left is not None and members is not None:
        note = dump({"left": list(outcome.left)})
        values = (run.claim.run_seq, f"@items#{members.round + 1}", ITEMS, at, note.encode())
        connection.execute(_LEAVE, values)
    for event_seq, error in outcome.failed_items:
        letter = NewRun(
            id=mint_id(), flow=flow, state=RunState.FAILED, error=error,
            code_version=run.code_version,
        )  # fmt: skip
        operations.replay(connection, counters, intake, event_seq, [letter], instant(at))
