"""The breakers of dependencies: a row each, written at a change of state only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import apsw

from turnout.service.domain.breaker import BreakerState, StoredBreaker

from .columns import overwritten, selected
from .values import instant, instant_or_none, micros, storable


class BreakerRow(NamedTuple):
    """The columns of the table `breakers`."""

    name: str
    state: str
    generation: int
    changed_at: int
    until: int | None
    down_since: int | None
    reason: str


_COLUMNS = BreakerRow._fields
_WRITE = (
    f"INSERT INTO breakers ({', '.join(_COLUMNS)}) VALUES (?, ?, ?, ?, ?, ?, ?)"
    f" ON CONFLICT (name) DO UPDATE SET {overwritten(_COLUMNS, ('name',))}"
    " WHERE excluded.generation >= breakers.generation"
)
_READ = f"SELECT {selected(_COLUMNS)} FROM breakers ORDER BY name"


def write(connection: apsw.Connection, breaker: StoredBreaker) -> None:
    """Write a breaker in place of an earlier generation."""
    row = BreakerRow(
        name=breaker.name,
        state=breaker.state.value,
        generation=breaker.generation,
        changed_at=micros(breaker.changed_at),
        until=None if breaker.until is None else micros(breaker.until),
        down_since=None if breaker.down_since is None else micros(breaker.down_since),
        reason=storable(breaker.reason),
    )
    connection.execute(_WRITE, row)


def read(connection: apsw.Connection) -> list[StoredBreaker]:
    """Return every breaker, by name."""
    return [_breaker_from(row) for row in connection.execute(_READ)]


def _breaker_from(values: Sequence[Any]) -> StoredBreaker:
    row = BreakerRow(*values)
    return StoredBreaker(
        name=row.name,
        state=BreakerState(row.state),
        generation=row.generation,
        changed_at=instant(row.changed_at),
        until=instant_or_none(row.until),
        down_since=instant_or_none(row.down_since),
        reason=row.reason,
    )
