"""SIGKILL at random moments while windows of every kind are open.

Every accepted event ends in a window that has fired, or with a decision, or with a run; each window
fires once, with the right events, and never before its time.
"""

from __future__ import annotations

import json
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import Say
from tests.support.program import Program, until

from .ledger import copied
from .load import Connection

FLOWS = Path(__file__).parent / "flows" / "windows.py"
SECOND = 1_000_000
SENDERS = 3
SHARES = {
    "debounce": 6, "last": 4, "batch": 8, "count": 6, "first": 4, "second": 4, "left": 4,
    "right": 4, "begun": 3, "done": 3,
}  # fmt: skip
"""How often each route is used, beside the others."""

KEYS = "abcd"
EACH_KIND = (
    "debounce", "last", "batch", *["count"] * 5, "first", "second", "left", "right", "left",
    "right", "begun",
)  # fmt: skip
"""What makes a window of each kind fire, whatever one key has seen before."""

pytestmark = pytest.mark.timeout(3600)


@dataclass
class Load:
    """Senders that are never killed, and the ids of the events that were accepted."""

    port: int
    seed: int
    accepted: set[str] = field(default_factory=set)
    _leaving: threading.Event = field(default_factory=threading.Event)
    _numbers: Iterator[int] = field(default_factory=count)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Send inside the block."""
        threads = [
            threading.Thread(target=self._send, args=(number,), daemon=True)
            for number in range(SENDERS)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._leaving.set()
            for thread in threads:
                thread.join(60)

    def _send(self, number: int) -> None:
        dice = random.Random(self.seed * 100 + number)
        with Connection(self.port, answer_seconds=5) as connection:
            while not self._leaving.is_set():
                (route,) = dice.choices(list(SHARES), list(SHARES.values()))
                is_answered = self._post(connection, route, dice.choice(KEYS))
                time.sleep(dice.uniform(0, 0.03) if is_answered else 0.05)

    def send(self, *pairs: tuple[str, str]) -> None:
        """Send an event by each (route, key) to a program that is up."""
        with Connection(self.port) as connection:
            for route, key in pairs:
                assert self._post(connection, route, key), route

    def _post(self, connection: Connection, route: str, key: str) -> bool:
        body = json.dumps({"n": next(self._numbers), "key": key}).encode()
        answer = connection.post(f"/hooks/{route}", body, {"Content-Type": "application/json"})
        if answer is not None and answer.status == 202:
            self.accepted.add(answer.json["event"])
        return answer is not None


class Window(NamedTuple):
    """A window of the journal, its members (number, part, at), and the results of its runs."""

    id: str
    flow: str
    state: str
    opened_at: int
    due_at: int | None
    closed_at: int | None
    members: list[tuple[int, int, int]]
    results: list[list[int] | None]


@contextmanager
def live(program: Program) -> Iterator[sqlite3.Connection]:
    path = program.data / "journal" / "journal.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
        yield journal


def open_windows(program: Program) -> int:
    with live(program) as journal:
        (found,) = journal.execute("SELECT count(*) FROM windows WHERE state = 'open'").fetchone()
    return int(found)


def windows_of(journal: sqlite3.Connection) -> list[Window]:
    found = []
    rows = journal.execute(
        "SELECT seq, id, flow, state, opened_at, due_at, closed_at FROM windows ORDER BY seq"
    ).fetchall()
    for seq, *row in rows:
        members = journal.execute(
            "SELECT e.body ->> '$.n', m.part, m.at FROM window_events AS m"
            " JOIN events AS e ON e.seq = m.event_seq WHERE m.window_seq = ? ORDER BY m.position",
            (seq,),
        ).fetchall()
        results = journal.execute(
            "SELECT CAST(result AS TEXT) FROM runs WHERE window_seq = ?", (seq,)
        ).fetchall()
        loaded = [None if text is None else json.loads(text) for (text,) in results]
        found.append(Window._make((*row, members, loaded)))
    return found


UNENDED = """
SELECT e.id FROM events AS e
WHERE e.decisions IS NULL
    AND NOT EXISTS (SELECT 1 FROM decisions AS d WHERE d.event_seq = e.seq)
    AND NOT EXISTS (SELECT 1 FROM runs AS r WHERE r.event_seq = e.seq)
    AND NOT EXISTS (SELECT 1 FROM window_events AS m JOIN windows AS w ON w.seq = m.window_seq
        JOIN runs AS r ON r.window_seq = w.seq
        WHERE m.event_seq = e.seq AND w.state = 'fired' AND r.state = 'succeeded')
"""


def problems(data: Path) -> tuple[list[str], Counter[str], set[str]]:
    """Return what is wrong, how many windows of each flow fired, and the ids of all events."""
    with copied(data) as journal:
        windows = windows_of(journal)
        found = [f"event {row[0]} has not ended" for row in journal.execute(UNENDED)]
        events = {row[0] for row in journal.execute("SELECT id FROM events")}
    fired = [window for window in windows if window.state == "fired"]
    for window in windows:
        if len(window.results) != (window.state == "fired"):
            found.append(f"{window.flow} {window.id}: {window.state}, {len(window.results)} runs")
    for window in fired:
        found += [f"{window.flow} {window.id}: {words}" for words in _wrong(window)]
    seen = Counter((window.flow, number) for window in fired for number, _, _ in window.members)
    found += [f"{each} is in {times} windows" for each, times in seen.items() if times > 1]
    return found, Counter(window.flow for window in fired), events


def _wrong(window: Window) -> Iterator[str]:
    numbers = [number for number, _, _ in window.members]
    instants = [at for _, _, at in window.members]
    parts = [part for _, part, _ in window.members]
    expected = numbers[-1:] if window.flow == "last" else numbers
    if window.flow == "missing":
        expected = numbers[:1]
    if window.results != [expected]:
        yield f"its run got {window.results}, not {expected}"
    closed, due = window.closed_at or 0, window.due_at or 0
    is_early = closed < due
    if window.flow in ("debounced", "last", "missing") and is_early:
        yield f"it fired {(due - closed) / SECOND} s early"
    if window.flow == "batched" and (len(numbers) > 7 or (is_early and len(numbers) < 7)):
        yield f"it fired {(due - closed) / SECOND} s early with {len(numbers)}"
    if window.flow == "counted" and (
        len(numbers) != 5 or max(instants) - min(instants) >= 3 * SECOND
    ):
        yield f"{len(numbers)} within {(max(instants) - min(instants)) / SECOND} s"
    if window.flow == "in_order" and (parts != [0, 1] or instants[1] - instants[0] > 3 * SECOND):
        yield f"parts {parts} at {instants}"
    if window.flow == "together" and (
        set(parts) != {0, 1} or max(instants) - min(instants) > 3 * SECOND
    ):
        yield f"parts {parts} at {instants}"


def test_windows_of_every_kind_fire_once_with_the_right_events_over_kills(
    tmp_path: Path, seed: int, full: bool, say: Say
) -> None:
    dice = random.Random(seed)
    program = Program(flows=FLOWS, data=tmp_path / "data", log=tmp_path / "log")
    load = Load(program.port, seed)
    with program:
        with load.running():
            for _ in range(200 if full else 5):
                program.start().ready(60)
                time.sleep(dice.uniform(0.05, 1.5))
                program.kill()
            program.start().ready(60)
            # What began before this start would be told a minute after it: senders may come again.
            load.send(*(("done", key) for key in KEYS))
        load.send(*((route, "a") for route in EACH_KIND))
        until(lambda: open_windows(program) == 0, 30, "every window closed")
        program.quiet(30)
        assert program.stop() == 0
        program.check_journal()
    found, fired, events = problems(program.data)
    say(f"{len(events)} events; fired: {dict(fired)}")
    assert found[:5] == []
    assert load.accepted <= events
    assert set(fired) == {
        "debounced", "last", "batched", "counted", "in_order", "together", "missing"
    }  # fmt: skip
