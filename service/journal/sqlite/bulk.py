"""Bulk statements: many rows written by one statement.

The driver releases the interpreter lock at every step of a statement. Under a busy event loop,
taking it back costs up to the switch interval (5 ms), so up to 256 rows are written at a time.
Up to 32 rows have a statement of exactly their number; more are written in multiples of 32, then
the rest. So a table has at most 39 statements, and the connection keeps all of them prepared.
"""

from __future__ import annotations

from typing import Any

import apsw

_MOST_ROWS = 256
_EXACT_ROWS = 32


class BulkStatement:
    """One statement around `VALUES (…), (…)` rows of `width` values each."""

    def __init__(self, head: str, width: int, tail: str = "") -> None:
        self._head = head
        self._tail = tail
        self._width = width
        self._texts: dict[int, str] = {}

    def run(self, connection: apsw.Connection, values: list[Any]) -> int:
        """Write all rows of the flat list `values`; return how many rows changed."""
        width = self._width
        left = len(values) // width
        start = changed = 0
        while left:
            rows = (
                left if left <= _EXACT_ROWS else min(_MOST_ROWS, left // _EXACT_ROWS * _EXACT_ROWS)
            )
            end = start + rows * width
            part = values if end - start == len(values) else values[start:end]
            connection.execute(self._text(rows), part)
            changed += connection.changes()
            start = end
            left -= rows
        return changed

    def _text(self, rows: int) -> str:
        text = self._texts.get(rows)
        if text is None:
            row = f"({','.join('?' * self._width)})"
            text = f"{self._head} (VALUES {','.join([row] * rows)}) {self._tail}"
            if self._head.endswith(")"):  # a plain INSERT takes its rows without parentheses
                text = f"{self._head} VALUES {','.join([row] * rows)} {self._tail}"
            self._texts[rows] = text
        return text
