"""Bulk statements: many rows written by one statement.

The driver releases the interpreter lock at every step of a statement. Under a busy event loop,
taking it back costs up to the switch interval (5 ms), so up to 256 rows are written at a time.
Up to 32 rows have a statement of exactly their number; more are written in multiples of 32, then
the rest. So a table has at most 39 statements, and the connection keeps all of them prepared: the
driver caches texts below 16 KiB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw

LONGEST_CACHED = 16_383
"""The longest text, in bytes, that the driver keeps prepared."""

_MOST_ROWS = 256
_EXACT_ROWS = 32
_ROWS = "{rows}"


class BulkStatement:
    """A statement that writes any number of rows with the given fields.

    `{rows}` in its text stands for the rows: `VALUES (?,…),(?,…)`.
    """

    def __init__(self, text: str, fields: Sequence[str]) -> None:
        self._before, _, self._after = " ".join(text.split()).partition(_ROWS)
        self._width = len(fields)
        self._row = f"({','.join('?' * self._width)})"
        self._texts: dict[int, str] = {}

    def run(self, connection: apsw.Connection, values: list[Any]) -> int:
        """Write all rows of the flat list `values`; return how many rows changed."""
        left = len(values) // self._width
        if left <= _EXACT_ROWS:
            return self._write(connection, left, values) if left else 0
        start = changed = 0
        while left:
            rows = left if left <= _EXACT_ROWS else min(_MOST_ROWS, left - left % _EXACT_ROWS)
            end = start + rows * self._width
            changed += self._write(connection, rows, values[start:end])
            start, left = end, left - rows
        return changed

    def _write(self, connection: apsw.Connection, rows: int, values: list[Any]) -> int:
        connection.execute(self._texts.get(rows) or self.text(rows), values)
        return connection.changes()

    def text(self, rows: int) -> str:
        """Return the statement for so many rows."""
        text = f"{self._before}VALUES {','.join([self._row] * rows)}{self._after}"
        assert len(text.encode()) <= LONGEST_CACHED, f"not cached: {self._before}"
        self._texts[rows] = text
        return text


def insert(table: str, fields: Sequence[str]) -> BulkStatement:
    """Return the statement that inserts rows of a table."""
    return BulkStatement(f"INSERT INTO {table} ({', '.join(fields)}) {{rows}}", fields)
