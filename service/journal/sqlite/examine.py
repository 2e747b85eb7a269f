"""The checks of `turnout doctor` on a journal, each with a name.

A check reads in one snapshot and returns a problem in one sentence, or None. Nothing is repaired.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import apsw

from . import blobs
from .statements import load

_SQL = load("checks")
_SHOWN = 5


def _integrity(connection: apsw.Connection) -> str | None:
    found = [row[0] for row in connection.execute(f"PRAGMA integrity_check({_SHOWN})")]
    return None if found == ["ok"] else f"the file is damaged: {'; '.join(found)}"


def _none_of(check: str, problem: str, connection: apsw.Connection) -> str | None:
    """Return the problem with the first few names a check finds, None when it finds nothing."""
    found = connection.execute(f"{_SQL[check]} LIMIT {_SHOWN + 1}").fetchall()
    if not found:
        return None
    names = ", ".join(str(row[0]) for row in found[:_SHOWN])
    return f"{problem}: {names}{', and more' if len(found) > _SHOWN else ''}"


CHECKS: tuple[tuple[str, Callable[[apsw.Connection], str | None]], ...] = (
    ("integrity of the file", _integrity),
    (
        "every run has its event",
        partial(_none_of, "runs_without_event", "runs without their event"),
    ),
    (
        "every event has a run or a decision",
        partial(_none_of, "events_without_run", "events that lost their runs"),
    ),
    (
        "one run for an event, flow and replay",
        partial(_none_of, "runs_made_twice", "runs made twice"),
    ),
    (
        "one event for a delivery",
        partial(_none_of, "deliveries_stored_twice", "deliveries stored twice"),
    ),
    (
        "every event is found by its id",
        partial(_none_of, "events_nobody_finds", "events nobody can find"),
    ),
    ("one record for a step", partial(_none_of, "steps_recorded_twice", "steps recorded twice")),
    ("every step has its run", partial(_none_of, "steps_without_run", "steps without their run")),
    ("every large result has its file", blobs.lost),
    (
        "every wait has its unfinished run",
        partial(_none_of, "waits_without_run", "waits nobody waits at"),
    ),
    (
        "every unfinished run is found by its keys",
        partial(_none_of, "runs_not_found_by_keys", "runs whose keys are missing, or left over"),
    ),
    ("states are legal", partial(_none_of, "unknown_states", "runs in an unknown state")),
    (
        "only ended runs have an end",
        partial(_none_of, "ends_that_do_not_fit", "runs whose end does not fit their state"),
    ),
    (
        "every window has its events and its run",
        partial(_none_of, "windows_that_do_not_fit", "windows that lost events, or their run"),
    ),
    (
        "every windowed run has its window",
        partial(_none_of, "runs_without_window", "runs without their window"),
    ),
)
