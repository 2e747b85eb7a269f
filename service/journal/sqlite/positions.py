"""Positions of triggers move by compare-and-set: from the value their mover last knew.

So a seek beside a reader, or two readers of one partition, cannot overwrite each other. Everything
is checked before anything of the same write is stored. Not here: what a position means (its
trigger).
"""

from __future__ import annotations

from collections.abc import Sequence

import apsw
import orjson

from turnout.service.domain.errors import PositionsMoved
from turnout.service.journal.contract import Positions

from .bulk import BulkStatement
from .statements import load
from .values import dump

_FIELDS = ("trigger", "partition", "value")
STORE = BulkStatement(
    f"""
    INSERT INTO positions ({", ".join(_FIELDS)}) {{rows}}
    ON CONFLICT (trigger, partition) DO UPDATE SET value = excluded.value
    """,
    _FIELDS,
)
_SQL = load("append")
_READ, _DELETE = _SQL["positions"], _SQL["delete_position"]


class Moves:
    """The moves of several writes in one transaction, each checked against those before it."""

    __slots__ = ("_connection", "_found", "_moved")

    def __init__(
        self, connection: apsw.Connection, writes: Sequence[tuple[str, Positions]]
    ) -> None:
        """Read the positions that the writes move."""
        self._connection = connection
        self._moved: dict[tuple[str, str], str | None] = {}
        keys = [(trigger, each) for trigger, positions in writes for each in positions]
        self._found = self._read(keys) if keys else {}

    def _read(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str | None]:
        text = self._connection.execute(_READ, (dump(keys),)).get
        return {(trigger, partition): value for trigger, partition, value in orjson.loads(text)}

    def add(self, trigger: str, positions: Positions) -> PositionsMoved | None:
        """Add the moves of one write, or return why none of them may be made."""
        for partition, (expected, _) in positions.items():
            found = self._found.get((trigger, partition))
            if expected != found:
                return PositionsMoved(trigger, partition, expected, found)
        for partition, (_, to) in positions.items():
            self._found[trigger, partition] = self._moved[trigger, partition] = to
        return None

    def write(self) -> None:
        """Store where the positions have moved to."""
        if not self._moved:
            return
        stored = [(*key, value) for key, value in self._moved.items() if value is not None]
        if stored:
            STORE.run(self._connection, [part for row in stored for part in row])
        for key, value in self._moved.items():
            if value is None:
                self._connection.execute(_DELETE, key)


def move(connection: apsw.Connection, trigger: str, positions: Positions) -> None:
    """Move a trigger's positions inside the open transaction; raises `PositionsMoved`."""
    moves = Moves(connection, [(trigger, positions)])
    error = moves.add(trigger, positions)
    if error is not None:
        raise error
    moves.write()
