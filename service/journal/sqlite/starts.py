"""The starts that throttles count: written with the claim, or with the run that starts on insert.

A row goes when it counts no more. Not here: who may start (`flowcontrol/throttle`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import apsw
import orjson

from turnout.service.domain.run import Start

from .bulk import insert
from .statements import load
from .values import instant, micros

_SQL = load("rates")


class StartRow(NamedTuple):
    """The columns of the table `starts`."""

    flow: str
    place: str
    key: str
    at: int
    until: int


INSERT = insert("starts", StartRow._fields)


def add(connection: apsw.Connection, starts: Iterable[Start]) -> None:
    """Record starts."""
    values: list[object] = []
    for start in starts:
        values += StartRow(
            flow=start.flow,
            place=start.rule_id,
            key=start.key,
            at=micros(start.at),
            until=micros(start.until),
        )
    INSERT.run(connection, values)


def read(connection: apsw.Connection) -> list[Start]:
    """Return the starts that are kept, in their order; some may count no more."""
    found = orjson.loads(connection.execute(_SQL["starts"]).get)
    rows = (StartRow(*row) for row in found)
    return [
        Start(row.flow, row.place, row.key, instant(row.at), instant(row.until)) for row in rows
    ]


def prune(connection: apsw.Connection, now: int, limit: int) -> int:
    """Delete up to `limit` rows of each kind of rate that count no more; returns how many."""
    deleted = 0
    for kind in ("delete_starts", "delete_accepted"):
        connection.execute(_SQL[kind], (now, limit))
        deleted += connection.changes()
    return deleted


def rename_flow(connection: apsw.Connection, was: str, name: str) -> None:
    """Count what a flow has started and accepted for its new name."""
    for kind in ("rename_starts", "rename_accepted"):
        connection.execute(_SQL[kind], (was, name))
