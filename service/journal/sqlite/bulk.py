"""Bulk statements: many rows written by one statement.

The driver releases the interpreter lock at every step of a statement. Under a busy event loop,
taking it back costs up to the switch interval (5 ms), so up to 256 rows are written at a time.
Up to 32 rows have a statement of exactly their number; more are written in multiples of 32, then
the rest. So a table has at most 39 statements, and the connection keeps all of them prepared: the
driver caches texts below 16 KiB.
"""

from __future__ import annotations

import re
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

    `{rows}` in its text stands for the rows: `VALUES (?,…),(?,…)`. A single row may be written by
    another text, `alone`. The first `shared` fields have the same values in all rows.
    """

    def __init__(
        self, text: str, fields: Sequence[str], alone: str | None = None, *, shared: int = 0
    ) -> None:
        self._before, _, self._after = " ".join(text.split()).partition(_ROWS)
        self._width = len(fields) - shared
        numbers = [f"?{number}" for number in range(1, shared + 1)]
        self._row = f"({','.join([*numbers, *'?' * self._width])})"
        self._texts: dict[int, str] = {}
        if alone is not None:
            self._texts[1] = alone

    def run(
        self, connection: apsw.Connection, values: list[Any], shared: Sequence[Any] = ()
    ) -> int:
        """Write all rows of the flat list `values`; return how many rows changed."""
        left = len(values) // self._width
        if left <= _EXACT_ROWS:
            if not left:
                return 0
            given = [*shared, *values] if shared else values
            connection.execute(self._texts.get(left) or self.text(left), given)
            return connection.changes()
        start = changed = 0
        while left:
            rows = left if left <= _EXACT_ROWS else min(_MOST_ROWS, left - left % _EXACT_ROWS)
            end = start + rows * self._width
            given = [*shared, *values[start:end]] if shared else values[start:end]
            connection.execute(self._texts.get(rows) or self.text(rows), given)
            changed += connection.changes()
            start, left = end, left - rows
        return changed

    def text(self, rows: int) -> str:
        """Return the statement for so many rows."""
        text = self._texts.get(rows)
        if text is None:
            text = f"{self._before}VALUES {','.join([self._row] * rows)}{self._after}"
            assert len(text.encode()) <= LONGEST_CACHED, f"not cached: {self._before}"
            self._texts[rows] = text
        return text


def insert(table: str, fields: Sequence[str], *, shared: Sequence[str] = ()) -> BulkStatement:
    """Return the statement that inserts rows of a table; the `shared` fields come first."""
    every = (*shared, *fields)
    text = f"INSERT INTO {table} ({', '.join(every)}) {{rows}}"
    return BulkStatement(text, every, shared=len(shared))


def for_each(text: str, fields: Sequence[str]) -> BulkStatement:
    """Return the statement that does something for each row of a table `given` with these fields.

    For a single row its values take the place of the table, which SQLite would build each time.
    """

    def value(match: re.Match[str]) -> str:
        return f"?{fields.index(match[1]) + 1}"

    text = " ".join(text.split())
    alone = re.sub(r"\bgiven\.(\w+)", value, text)
    alone = alone.replace("FROM given CROSS JOIN runs", "FROM runs").replace(
        "FROM given WHERE", "WHERE"
    )
    assert "given" not in alone
    return BulkStatement(f"WITH given ({', '.join(fields)}) AS ({{rows}}) {text}", fields, alone)
