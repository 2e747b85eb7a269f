"""Events that are appended as columns are stored as they are one by one: the same rows."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.journal.test_sqlite import opened
from tests.support.journal_contract import NOW, at, make_event
from tests.support.journal_windows import HOOK, member
from turnout.service.domain.event import Event
from turnout.service.domain.event_columns import EventColumns, keyed
from turnout.service.domain.windows.batch import batch
from turnout.service.domain.windows.window import WindowSettings
from turnout.service.journal.records import Appended, Entry, Move
from turnout.service.journal.sqlite.journal import SqliteJournal

TABLES = {
    "events": "SELECT * FROM events ORDER BY seq",
    "windows": "SELECT seq, flow, key, settings, state, opened_at, due_at, closed_at, members,"
    " bytes, positions FROM windows ORDER BY seq",
    "window_events": "SELECT * FROM window_events ORDER BY window_seq, position",
    "runs": "SELECT seq, event_seq, flow, state, queued_at, window_seq FROM runs ORDER BY seq",
    "decisions": "SELECT * FROM decisions ORDER BY event_seq, ordinal",
}


def drawn(dice: random.Random, count: int) -> list[tuple[Event, str | None]]:
    """Return models of events with their keys."""
    partitions = [
        make_event(source=f"kafka://c/{topic}", extensions={"partition": f"{topic}/0"})
        for topic in ("a", "ü")
    ]
    made = []
    for _ in range(count):
        model, key = dice.choice(partitions), dice.choice([None, None, "k", 'q"\\\x00é'])
        if dice.random() < 0.2:
            model, key = make_event(headers={"x": "1"}, hops=2, subject="own"), None
        made.append((model, key))
    return made


def columns_of(dice: random.Random, count: int) -> EventColumns:
    columns = EventColumns()
    for number, (model, key) in enumerate(drawn(dice, count)):
        columns.models.append(model)
        columns.ids.append(f"{number}-{dice.random()}")
        columns.times.append(dice.randrange(2**48))
        columns.keys.append(key)
        columns.bodies.append(b"x" * dice.choice([1, 5, 30]))
        columns.data.append(None)
    return columns


def entry_of(events: Sequence[Event], settings: WindowSettings) -> list[Entry]:
    if isinstance(events, EventColumns):
        return [Entry(events[0], members=[member(settings)], columns=events)]
    return [Entry(event, members=[member(settings)]) for event in events]


async def append(
    journal: SqliteJournal, events: Sequence[Event], settings: WindowSettings, seconds: float
) -> list[Appended]:
    number = str(seconds)
    position = {str(seconds): Move(None, number)}
    return await journal.append(
        entry_of(events, settings), trigger="t", positions=position, now=at(seconds)
    )


def rows(folder: Path) -> dict[str, list[Any]]:
    path = next(folder.rglob("journal.db"))
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
        return {table: journal.execute(text).fetchall() for table, text in TABLES.items()}


@pytest.mark.parametrize("number", range(12))
async def test_the_rows_are_those_of_single_events(tmp_path: Path, number: int, seed: int) -> None:
    dice = random.Random(seed * 100 + number)
    settings = batch(
        HOOK, dice.choice([1, 2, 7, 60]), "2s", max_bytes=dice.choice([29, 200, 2**20])
    )
    sizes = [dice.choice([1, 2, 3, 40, 300]) for _ in range(6)]
    seconds = [dice.choice([0.5, 1.0, 3.0]) for _ in sizes]
    made = [columns_of(dice, size) for size in sizes]
    for name in ("columns", "single"):
        async with opened(tmp_path / name) as journal:
            now = 0.0
            for columns, more in zip(made, seconds, strict=True):
                now += more
                events = columns if name == "columns" else list(columns)
                found = await append(journal, events, settings.settings, now)
                assert len(found) == (1 if name == "columns" else len(columns))
    together, single = rows(tmp_path / "columns"), rows(tmp_path / "single")
    for table in TABLES:
        assert together[table] == single[table], table
    assert len(together["events"]) == sum(sizes) == len(together["window_events"])


async def test_what_is_refused_leaves_nothing(tmp_path: Path) -> None:
    settings = batch(HOOK, 100, "2s").settings
    dice = random.Random(1)
    async with opened(tmp_path) as journal:
        await append(journal, columns_of(dice, 3), settings, 0)
        events = columns_of(dice, 400)
        events.ids[350] = "\ud800"  # no row can hold it
        with pytest.raises(Exception, match="surrogates"):
            await append(journal, events, settings, 1)
        await append(journal, columns_of(dice, 2), settings, 1)
    found = rows(tmp_path)
    assert [row[9] for row in found["windows"]] and len(found["events"]) == 5
    assert len(found["window_events"]) == 5


def test_an_event_is_its_model_but_for_the_columns() -> None:
    columns = EventColumns()
    whole = make_event(headers={"x": "1"}, body=b'{"n": 1}')
    columns.add(whole)
    columns.models.append(whole)
    columns.ids.append("other")
    columns.times.append(0)
    columns.keys.append("k")
    columns.bodies.append(b"[2]")
    columns.data.append([2])
    first, second = columns
    assert first == whole and first is not whole
    assert (second.id, second.subject, second.data) == ("other", "k", [2])
    assert second.extensions == keyed(whole, "k").extensions
    taken = list(columns.decoded())
    assert [each.data for each in taken] == [{"n": 1}, [2]]
    assert taken[1].data is columns.data[1]
    assert columns[1].data is not columns.data[1], "its reader may change it"
    part = columns[1:]
    assert list(part) == [second] and part[0].data == [2]
    assert first.time == NOW
