"""Lines: how many runs are due, and which position a run has among those that are queued.

Functions of a reading connection. Counting is bounded where it looks at rows one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import apsw

from turnout.service.journal.records import MOST_COUNTED, ORDER_RULE, DueCount, InLine

from .statements import load
from .values import instant, micros

_SQL = load("reads")


def queue_positions(connection: apsw.Connection, runs: Sequence[InLine]) -> list[int]:
    """Return the position of each run among the queued ones of its line, from 1 to a bound."""
    return [_place(connection, run) for run in runs]


def _place(connection: apsw.Connection, run: InLine) -> int:
    asked: tuple[Any, ...] = (run.flow, run.arrival, MOST_COUNTED)
    if run.rule_id is None or run.key is None:
        name = "position_in_flow"
    elif run.rule_id == ORDER_RULE:
        name, asked = "position_in_order", (*asked, run.key)
    else:
        name, asked = "position_at_key", (*asked, run.key, run.rule_id)
    position: int = connection.execute(_SQL[name], asked).get
    return position


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


def due_between(connection: apsw.Connection, after: datetime, until: datetime) -> dict[str, int]:
    """Return, by flow, how many runs become due after one instant and until another."""
    return dict(_rows(connection, "due_between", micros(after), micros(until)))


def _rows(connection: apsw.Connection, name: str, *values: Any) -> list[Any]:
    return connection.execute(_SQL[name], values).fetchall()
