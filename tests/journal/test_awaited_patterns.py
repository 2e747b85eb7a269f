"""Events that a pattern awaits are found by the range of an index, also where plans are fixed."""

from __future__ import annotations

from pathlib import Path

from turnout.service.journal.sqlite.connection import open_for_writing
from turnout.service.journal.sqlite.event_reads import awaited_as


def test_a_pattern_is_a_range_of_the_index(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir(mode=0o700)
    connection = open_for_writing(tmp_path, synchronous="normal")
    condition, values = awaited_as("event:order.*", is_pattern=True)
    text = (
        "EXPLAIN QUERY PLAN SELECT e.seq FROM events AS e INDEXED BY events_awaited"
        f" WHERE e.awaited IS NOT NULL AND {condition} AND e.seq > ?"
    )
    plan = [row[3] for row in connection.execute(text, (*values, 0))]
    connection.close()
    assert any("(awaited>? AND awaited<?)" in step for step in plan), plan
