"""The rows of limits that operators have set; written inside the transaction they are called in."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import apsw

from turnout.service.journal.records import StoredOverride

from .statements import load
from .values import instant, micros, storable

_SQL = load("operations")


def override(connection: apsw.Connection, made: StoredOverride) -> None:
    """Store a limit that an operator has set, in place of one of the same name."""
    note, by = storable(made.note), storable(made.by)
    row = (made.name, made.count, micros(made.since), micros(made.until), note, by)
    connection.execute(_SQL["override"], row)


def end_overrides(connection: apsw.Connection, now: datetime) -> list[StoredOverride]:
    """Delete and return the limits that end by `now`."""
    return [override_from(row) for row in connection.execute(_SQL["end_overrides"], (micros(now),))]


def rename_flow(connection: apsw.Connection, was: str, name: str) -> None:
    """Let what is set for a flow's own limits hold for its new name."""
    connection.execute(_SQL["rename_overrides"], (was, name))
    connection.execute(_SQL["forget_overrides"], (was,))


def override_from(row: Sequence[Any]) -> StoredOverride:
    """Return the override of a row."""
    name, count, since, until, note, by = row
    return StoredOverride(
        name=name, count=count, since=instant(since), until=instant(until), note=note, by=by
    )
