"""One column list a table: the fields of its row class, from which statements are made.

A row is a named tuple whose fields are columns. Inserts, upserts and select lists take the names
from it; a row is made from values and read by name. To add a column: a migration, a field, and its
value where the row is made.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


def selected(fields: Sequence[str], table: str = "", **instead: str) -> str:
    """Return a select list; `instead` has the expressions of fields that are no columns."""
    unknown = instead.keys() - set(fields)
    assert not unknown, f"no such field: {unknown}"
    prefix = f"{table}." if table else ""
    return ", ".join(instead.get(name, f"{prefix}{name}") for name in fields)


def overwritten(fields: Sequence[str], key: Collection[str]) -> str:
    """Return the SET list of an upsert: every field but those of the key."""
    return ", ".join(f"{name} = excluded.{name}" for name in fields if name not in key)
