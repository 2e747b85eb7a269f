"""The checks of `turnout doctor` on a journal, each with a name.

A check reads in one snapshot and returns a problem in one sentence, or None. Nothing is repaired.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import apsw

from turnout.service.domain.run import FINISHED, RunState

from . import blobs

_FINISHED = ", ".join(f"'{state}'" for state in sorted(FINISHED))
_STATES = ", ".join(f"'{state}'" for state in sorted(RunState))
_SHOWN = 5


def _integrity(connection: apsw.Connection) -> str | None:
    found = [row[0] for row in connection.execute(f"PRAGMA integrity_check({_SHOWN})")]
    return None if found == ["ok"] else "; ".join(found)


def _none_of(query: str, problem: str, connection: apsw.Connection) -> str | None:
    """Return the problem with the first few names `query` finds, None when it finds nothing."""
    found = connection.execute(f"{query} LIMIT {_SHOWN + 1}").fetchall()
    if not found:
        return None
    names = ", ".join(str(row[0]) for row in found[:_SHOWN])
    return f"{problem}: {names}{', and more' if len(found) > _SHOWN else ''}"


CHECKS: tuple[tuple[str, Callable[[apsw.Connection], str | None]], ...] = (
    ("the file is whole", _integrity),
    (
        "every run has its event",
        partial(
            _none_of,
            "SELECT id FROM runs WHERE event_seq NOT IN (SELECT seq FROM events)",
            "runs without their event",
        ),
    ),
    (
        "every event has a run or a decision",
        partial(
            _none_of,
            "SELECT id FROM events AS e WHERE decisions IS NULL AND unmatched IS NULL"
            " AND NOT EXISTS (SELECT 1 FROM runs AS r WHERE r.event_seq = e.seq)",
            "events that lost their runs",
        ),
    ),
    (
        "one run for an event, flow and replay",
        partial(
            _none_of,
            "SELECT group_concat(id, ' = ') FROM runs GROUP BY event_seq, flow, replay"
            " HAVING count(*) > 1",
            "runs made twice",
        ),
    ),
    (
        "one event for a delivery",
        partial(
            _none_of,
            "SELECT group_concat(event_seq, ' = ') FROM dedupe GROUP BY key HAVING count(*) > 1",
            "deliveries stored twice",
        ),
    ),
    (
        "every event is found by its id",
        partial(
            _none_of,
            "SELECT id FROM events AS e WHERE by_id IS NOT 1"
            " AND NOT EXISTS (SELECT 1 FROM dedupe AS d WHERE d.event_seq = e.seq)",
            "events nobody can find",
        ),
    ),
    (
        "one record for a step",
        partial(
            _none_of,
            "SELECT key FROM steps GROUP BY run_seq, key HAVING count(*) > 1",
            "steps recorded twice",
        ),
    ),
    (
        "every step has its run",
        partial(
            _none_of,
            "SELECT key FROM steps WHERE run_seq NOT IN (SELECT seq FROM runs)",
            "steps without their run",
        ),
    ),
    ("every large result has its file", blobs.lost),
    (
        "every wait has its unfinished run",
        partial(
            _none_of,
            "SELECT w.key FROM waits AS w LEFT JOIN runs AS r ON r.seq = w.run_seq"
            f" WHERE r.seq IS NULL OR r.state IN ({_FINISHED})",
            "waits nobody waits at",
        ),
    ),
    (
        "states are legal",
        partial(
            _none_of,
            f"SELECT id FROM runs WHERE state NOT IN ({_STATES})",
            "runs in an unknown state",
        ),
    ),
    (
        "only ended runs have an end",
        partial(
            _none_of,
            "SELECT id FROM runs"
            f" WHERE (finished_at IS NOT NULL) <> (state IN ({_FINISHED}))"
            " OR (dead = 1 AND state <> 'failed' AND finished_at IS NOT NULL)",
            "runs whose end does not fit their state",
        ),
    ),
)
