"""Pauses, and the end of runs that waited behind one: written inside a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import apsw

from turnout.service.domain.decisions import Reason
from turnout.service.journal.records import Decision, Discarded, StoredPause

from .counters import RunCounters
from .skip import skip
from .statements import load
from .values import instant, instant_or_none, micros, micros_or_none, storable

BATCH = 1_000
"""How many runs one transaction discards: more would keep other writes waiting."""

_SQL = load("operations")


def pause(connection: apsw.Connection, made: StoredPause) -> None:
    """Store a pause; one of the same name that has not ended keeps its beginning."""
    until, note, by = micros_or_none(made.until), storable(made.note), storable(made.by)
    connection.execute(_SQL["pause"], (made.name, micros(made.since), until, note, by))


def end_pauses(connection: apsw.Connection, now: datetime) -> list[StoredPause]:
    """Delete and return the pauses that end by `now`."""
    return [pause_from(row) for row in connection.execute(_SQL["end_pauses"], (micros(now),))]


def rename_flow(connection: apsw.Connection, was: str, name: str) -> None:
    """Let the pause of a flow be that of its new name."""
    connection.execute(_SQL["rename_pause"], (was, name))
    connection.execute(_SQL["resume"], (f"flow:{was}",))


def pause_from(row: Sequence[Any]) -> StoredPause:
    """Return the pause of a row."""
    name, since, until, note, by = row
    return StoredPause(
        name=name, since=instant(since), until=instant_or_none(until), note=note, by=by
    )


def discard(
    connection: apsw.Connection,
    counters: RunCounters,
    flow: str,
    now: datetime,
    *,
    detail: str,
    by: str,
    after: int,
    up_to: int | None,
) -> Discarded:
    """End a batch of queued runs that were never claimed, as skipped."""
    at = micros(now)
    last: int = connection.execute(_SQL["last_run"]).get if up_to is None else up_to
    found: list[Any] = connection.execute(_SQL["not_begun"], (flow, after, last, BATCH)).fetchall()
    runs = []
    for seq, run_id in found:
        made = Decision(flow, Reason.DROPPED, detail, {"run": run_id, "by": by})
        run = skip(connection, counters, seq, made, at)
        if run is not None:
            runs.append(run)
    return Discarded(runs, last, more=len(found) == BATCH)
