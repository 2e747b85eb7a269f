"""Lines: how many runs are due, and which place a run has among those that are queued.

Functions of a reading connection. Counting is bounded where it looks at rows one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import apsw

from turnout.service.journal.records import MOST_COUNTED, ORDER_PLACE, DueCount, InLine

from .statements import load
from .values import instant, micros

_SQL = load("reads")


def places_in_line(connection: apsw.Connection, runs: Sequence[InLine]) -> list[int]:
    """Return for each run its place among the queued ones of its line, from 1 to a bound."""
    return [_place(connection, run) for run in runs]


def _place(connection: apsw.Connection, run: InLine) -> int:
    asked: tuple[Any, ...] = (run.flow, run.run_seq, MOST_COUNTED)
    if run.place is None or run.key is None:
        name = "place_in_flow"
    elif run.place == ORDER_PLACE:
        name, asked = "place_in_order", (*asked, run.key)
    else:
        name, asked = "place_at_key", (*asked, run.key, run.place)
    place: int = connection.execute(_SQL[name], asked).get
    return place


def due_counts(connection: apsw.Connection, now: datetime) -> list[DueCount]:
    """Return for each flow with unfinished runs how many are due, or will be."""
    scheduled = _rows(connection, "scheduled_by_flow")
    counts = {flow: DueCount(flow, 0, None, number) for flow, number in scheduled}
    for flow, number, first in _rows(connection, "queued_by_flow"):
        known = counts.get(flow, DueCount(flow, 0, None, 0))
        counts[flow] = known._replace(due=number, oldest=instant(first))
    for flow, number, first, were_scheduled in _rows(connection, "due_by_flow", micros(now)):
        known = counts.get(flow, DueCount(flow, 0, None, 0))
        oldest = instant(first) if known.oldest is None else min(known.oldest, instant(first))
        counts[flow] = DueCount(flow, known.due + number, oldest, known.scheduled - were_scheduled)
    return list(counts.values())


def _rows(connection: apsw.Connection, name: str, *values: Any) -> list[Any]:
    return connection.execute(_SQL[name], values).fetchall()
