"""A throttle holds over failures, kills, a deploy of another rate, and a clock set back."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import Say
from tests.support.injected_clock import InjectedClock
from tests.support.program import Program, until

from .load import Connection

FLOWS = """
from turnout import current, flow, retry, throttle, webhook

@flow(on=webhook("/charge"), rate=throttle("{rate}"), retry=retry(2, delay="10ms"))
async def charge(order: dict) -> None:
    if current().attempt <= 2:
        raise ConnectionError("the other side is down")
"""

KILLS = 5
LOOK_SECONDS = 0.1

pytestmark = pytest.mark.timeout(600)

FORGETFUL = """
from turnout.service.journal.sqlite.journal import SqliteJournal

async def nothing(self):
    return []

SqliteJournal.starts = nothing
"""


@dataclass
class Recorded:
    """Every start that the journal has ever held; it deletes those that count no more."""

    data: Path
    rows: set[tuple[int, int]] = field(default_factory=set)

    def look(self) -> None:
        file = self.data / "journal" / "journal.db"
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as journal:
            self.rows |= set(journal.execute("SELECT at, rowid FROM starts"))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look again and again inside the block, and once more at its end."""
        leaving = threading.Event()

        def look_again() -> None:
            while not leaving.wait(LOOK_SECONDS):
                self.look()

        watcher = threading.Thread(target=look_again, name="watcher", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            leaving.set()
            watcher.join(10)
            self.look()

    def most_within(self, seconds: float) -> int:
        """Return the most starts in any stretch of time."""
        instants = sorted(at for at, _ in self.rows)
        return most_within(instants, round(seconds * 1e6))


def most_within(instants: Sequence[int], period: int) -> int:
    """Return how many of these instants, in order, lie in one stretch shorter than a period."""
    first = most = 0
    for last, at in enumerate(instants):
        while at - instants[first] >= period:
            first += 1
        most = max(most, last - first + 1)
    return most


def test_the_most_within_a_stretch_is_counted() -> None:
    assert most_within([], 10) == 0
    assert most_within([0, 10, 20], 10) == 1
    assert most_within([0, 0, 9, 10, 11, 30], 10) == 3


def program_in(tmp_path: Path, rate: str, sabotage: str = "") -> tuple[Program, InjectedClock]:
    clock = InjectedClock(tmp_path)
    (tmp_path / "flows.py").write_text(FLOWS.format(rate=rate))
    program = Program(
        flows=tmp_path / "flows.py",
        data=tmp_path / "data",
        log=tmp_path / "log",
        sabotage=sabotage,
        env=clock.env,
    )
    return program, clock


def send(program: Program, count: int) -> None:
    connection = Connection(program.port)
    for number in range(count):
        answer = connection.post("/hooks/charge", b'{"id": %d}' % number, {})
        assert answer is not None and answer.status == 202
    connection.close()


def test_no_stretch_holds_more_starts_than_the_throttle_says(
    tmp_path: Path, full: bool, seed: int, say: Say
) -> None:
    runs, dice = 300 if full else 24, random.Random(seed)
    program, clock = program_in(tmp_path, "20/2s")
    recorded = Recorded(program.data)
    with program.start():
        program.ready()
        with recorded.watching():
            send(program, runs)
            for kill in range(KILLS):
                time.sleep(dice.uniform(0.1, 1.5))
                recorded.look()  # what is of another hour is deleted by the first start
                if kill == 2:
                    clock.set("-1h")  # first under the running program, then over a start
                if kill == 3:
                    program.flows.write_text(FLOWS.format(rate="10/2s"))
                program.kill()
                program.start()
                program.ready()
            time.sleep(2)  # else the instants before and after that hour are within two seconds
            recorded.look()
            clock.set("+0s")  # what was to be retried is due an hour ahead
            until(lambda: program.unfinished() == 0, runs + 60, "every run ended")
        most = recorded.most_within(2)
        say(f"{len(recorded.rows)} starts, at most {most} in 2 s")
        assert program.stop() == 0
    program.check_journal()
    assert len(recorded.rows) >= 2 * runs, "most of the three starts of each run are seen"
    assert most <= 20


@pytest.mark.parametrize("sabotage", ["", FORGETFUL], ids=["kept", "forgotten"])
def test_a_kill_forgets_no_start_and_the_check_would_notice(tmp_path: Path, sabotage: str) -> None:
    program, _ = program_in(tmp_path, "20/1m", sabotage)
    recorded = Recorded(program.data)

    def starts() -> int:
        recorded.look()
        return len(recorded.rows)

    with program.start():
        program.ready()
        send(program, 50)
        until(lambda: starts() == 20, 20, "20 starts")
        program.kill()
        program.start()
        program.ready()
        if sabotage:
            until(lambda: starts() > 20, 20, "more starts, since it has forgotten those before")
        else:
            send(program, 5)
            assert starts() == 20
        assert recorded.most_within(60) == starts()


BACKLOG = """
from turnout import event, flow, throttle, webhook

@flow(on=webhook("/nothing"))
async def nothing(data: dict) -> None: ...

@flow(on=webhook("/flow"), rate=throttle("1/d"))
async def of_the_flow(data: dict) -> None: ...

@flow(on=webhook("/key"), rate=throttle("1/d", per=lambda event: event.data["id"] % {keys}))
async def of_a_key(data: dict) -> None: ...
"""

MOST_MIB = 20.0
SENDERS = 4


def flood(program: Program, path: str, count: int) -> None:
    """Send so many events on a few connections at once."""

    def send_part(first: int) -> None:
        connection = Connection(program.port)
        for number in range(first, count, SENDERS):
            answer = connection.post(path, b'{"id": %d, "text": "%s"}' % (number, b"x" * 250), {})
            assert answer is not None and answer.status == 202
        connection.close()

    with ThreadPoolExecutor(SENDERS) as pool:
        list(pool.map(send_part, range(SENDERS)))


@pytest.mark.alone
@pytest.mark.parametrize("path", ["/hooks/flow", "/hooks/key"])
def test_a_throttled_backlog_takes_little_memory(
    tmp_path: Path, full: bool, say: Say, path: str
) -> None:
    count, keys = (100_000, 1000) if full else (3000, 100)
    (tmp_path / "flows.py").write_text(BACKLOG.format(keys=keys))
    flows, data = tmp_path / "flows.py", tmp_path / "data"
    with Program(flows=flows, data=data, log=tmp_path / "log", spawned=True).start() as program:
        program.ready()
        # What the process needs for any load is there now: the writer's cache of pages is 16 MiB.
        flood(program, "/hooks/nothing", 20_000 if full else 2000)
        program.quiet(60)
        idle = program.rss_mib()
        flood(program, path, count)
        started = 1 if path == "/hooks/flow" else keys
        until(lambda: program.unfinished() == count - started, 60, "the others wait")
        grown = program.rss_mib() - idle
        say(f"{count} throttled runs: {grown:+.1f} MiB above {idle:.1f} MiB")
        assert grown <= MOST_MIB
