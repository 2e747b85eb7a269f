"""The schema of a new journal: what the migrations lead to; `python -m tests.support.schema`."""

from __future__ import annotations

from pathlib import Path

import apsw

from tests.support import CHECKOUT
from turnout.service.journal.sqlite.migrations import apply_migrations

FILE: Path = CHECKOUT / "service" / "journal" / "sqlite" / "schema.sql"
HEAD = """\
-- The tables and indexes of a new journal: what all migrations together lead to.
-- After a new migration: python -m tests.support.schema
"""


def schema() -> str:
    """Return the statements that make what the migrations make; none of them writes a row."""
    connection = apsw.Connection(":memory:")
    apply_migrations(connection, after=0)
    made = "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid"
    found = connection.execute(made).fetchall()
    for kind, name, _ in found:
        if kind == "table":
            assert connection.execute(f'SELECT count(*) FROM "{name}"').get == 0
    connection.close()
    return HEAD + "".join(f"\n{sql};\n" for _, _, sql in found)


if __name__ == "__main__":
    FILE.write_text(schema(), "utf-8")
