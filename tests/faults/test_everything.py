"""Random events over every construct, from every source, while the service is killed.

Every event ends linked to a run or to a decision, and its file or offset follows: a file is moved
once its runs have ended, or stays with a decision; what Kafka is told is what the journal has.
"""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest

from tests.conftest import Say
from tests.support.brokers import Broker
from tests.support.program import Program, until

from .ledger import copied
from .load import Connection
from .records import Feeder, Group, places

FLOWS = Path(__file__).parent / "flows" / "everything.py"
FOLDERS = ("plain", "batched", "counted", "shadow")
TYPES = ("order.placed", "order.paid", "order.shipped")
HOOKS = ("/hooks/a", "/hooks/b", "/hooks/c", "/hooks/d")
KEYS = [*"abcdefgh"]
SENDERS = 4
TOKEN = "t" * 40

pytestmark = pytest.mark.timeout(7200)


@dataclass
class Load:
    """Senders and a folder of files that are never killed; what was accepted, by id."""

    port: int
    inbox: Path
    dice: random.Random
    wanted: int
    pause: float
    folders: Sequence[str] = FOLDERS
    accepted: set[str] = field(default_factory=set)
    dropped: list[Path] = field(default_factory=list)
    answered: list[tuple[float, float]] = field(default_factory=list)
    """When each accepted request was answered, and how long after it was sent."""

    _leaving: threading.Event = field(default_factory=threading.Event)
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Send inside the block."""
        seeds = [self.dice.random() for _ in range(SENDERS)]
        threads = [threading.Thread(target=self._send, args=(seed,), daemon=True) for seed in seeds]
        threads.append(threading.Thread(target=self._drop, daemon=True))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._leaving.set()
            for thread in threads:
                thread.join(60)

    @property
    def is_enough(self) -> bool:
        return len(self.accepted) >= self.wanted

    def finish(self) -> None:
        """Close what waits for an event of a key: nobody can tell whether it came meanwhile."""
        connection = Connection(self.port)
        for key in KEYS:
            body = {"n": next(self._numbers), "key": key}  # a number used before is another event
            assert self._post(connection, TYPES[2], body)
        connection.close()

    def _send(self, seed: float) -> None:
        dice, connection = random.Random(seed), Connection(self.port, answer_seconds=5)
        while not self._leaving.is_set() and not self.is_enough:
            route = dice.choice(HOOKS) if dice.random() < 0.7 else dice.choice(TYPES)
            body = {"n": next(self._numbers), "key": dice.choice(KEYS)}
            if not self._post(connection, route, body):
                time.sleep(0.05)
            time.sleep(self.pause)
        connection.close()

    def _post(self, connection: Connection, route: str, body: dict[str, object]) -> bool:
        headers = {"Content-Type": "application/json"}
        if route in TYPES:
            headers |= {
                "ce-id": f"e-{body['n']}-{body['key']}", "ce-source": "/test", "ce-type": route,
                "ce-specversion": "1.0", "Authorization": f"Bearer {TOKEN}",
            }  # fmt: skip
        path = "/api/events" if route in TYPES else route
        began = time.monotonic()
        answer = connection.post(path, json.dumps(body).encode(), headers)
        if answer is None or answer.status >= 500:
            return False
        ended = time.monotonic()
        self.answered.append((ended, ended - began))
        assert answer.status in (200, 201, 202), answer
        self.accepted.add(answer.json["event"])
        return True

    def _drop(self) -> None:
        dice = random.Random(self.wanted)
        while not self._leaving.is_set() and len(self.dropped) < self.wanted / 20:
            folder = self.inbox / dice.choice(self.folders)
            path = folder / f"{len(self.dropped)}.json"
            path.with_suffix(".part").write_text(json.dumps({"n": len(self.dropped)}))
            path.with_suffix(".part").rename(path)
            self.dropped.append(path)
            time.sleep(self.pause * 5)


# ---------------------------------------------------------------- what must hold

NOT_LINKED = """
SELECT e.id, e.trigger FROM events AS e
WHERE e.decisions IS NULL
    AND NOT EXISTS (SELECT 1 FROM decisions AS d WHERE d.event_seq = e.seq)
    AND NOT EXISTS (SELECT 1 FROM runs AS r WHERE r.event_seq = e.seq)
    AND NOT EXISTS (SELECT 1 FROM window_events AS m JOIN windows AS w ON w.seq = m.window_seq
        JOIN runs AS r ON r.window_seq = w.seq
        WHERE m.event_seq = e.seq AND w.state = 'fired')
"""
UNENDED = """
SELECT count(*) FROM runs WHERE state IN ('scheduled', 'queued', 'running', 'retrying', 'waiting')
"""
MOVED = """
SELECT e.trigger, e.details ->> '$.subject' FROM events AS e
WHERE e.trigger LIKE 'files:%' AND (
    EXISTS (SELECT 1 FROM runs AS r WHERE r.event_seq = e.seq AND +r.state = 'succeeded')
    OR EXISTS (SELECT 1 FROM window_events AS m JOIN runs AS r ON r.window_seq = m.window_seq
        WHERE m.event_seq = e.seq AND +r.state = 'succeeded'))
"""  # + keeps the index of the event: the one by state is of all runs


def counted(program: Program, what: str) -> int:
    """Count rows of the journal of a running program."""
    path = program.data / "journal" / "journal.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
        (found,) = journal.execute(f"SELECT count(*) FROM {what}").fetchone()
    return int(found)


def problems(data: Path, load: Load) -> tuple[list[str], Counter[str], set[str]]:
    """Return what is wrong, how many events came from each kind of source, and the flows."""
    with copied(data) as journal:
        found = [f"{event} of {trigger} is lost" for event, trigger in journal.execute(NOT_LINKED)]
        (unended,) = journal.execute(UNENDED).fetchone()
        rows = journal.execute("SELECT id, trigger FROM events").fetchall()
        flows = {flow for (flow,) in journal.execute("SELECT DISTINCT flow FROM runs")}
        moved = {f"{Path(trigger).parent.name}/{name}" for trigger, name in journal.execute(MOVED)}
    if unended:
        found.append(f"{unended} runs have not ended")
    ids = {event for event, _ in rows}
    found += [f"accepted event {event} is not there" for event in load.accepted - ids]
    for path in load.dropped:
        is_moved = (path.parent / "done" / path.name).exists()
        name = f"{path.parent.name}/{path.name}"
        if is_moved == path.exists():
            found.append(f"{name} is there twice, or gone")
        elif is_moved != (name in moved):
            found.append(f"{name}: moved is {is_moved}, its runs say otherwise")
    return found, Counter(trigger.partition(":")[0] for _, trigger in rows), flows


FLOW_COUNT = FLOWS.read_text().count("@flow") - 2  # two are shadows


def program_for(group: Group, folder: Path) -> Program:
    inbox = folder / "inbox"
    for name in FOLDERS:
        (inbox / name).mkdir(parents=True)
    program = group.program(
        folder, TURNOUT_TEST_INBOX=str(inbox), TURNOUT_API_TOKEN=TOKEN,
        TURNOUT_KEEP_UNMATCHED="7d",
    )  # fmt: skip
    program.flows = FLOWS
    return program


def test_every_event_ends_linked_to_a_run_or_to_a_decision_and_its_source_follows(
    kafka: Broker, tmp_path: Path, seed: int, full: bool, say: Say
) -> None:
    dice, group = random.Random(seed), Group.on(kafka, partitions=2)
    program = program_for(group, tmp_path / "service")
    wanted = 42_000 if full else 200
    load = Load(program.port, tmp_path / "service" / "inbox", dice, wanted, 0 if full else 0.005)
    feeder = Feeder(broker=kafka, topic=group.topic, pace=60, most=wanted // 6)
    with program:
        program.start().ready(60)
        with load.running(), feeder.running():
            for share in (0.3, 0.6) if full else (0.5,):
                until(lambda: len(load.accepted) > wanted * share, 3600, f"{share} of all")  # noqa: B023
                program.kill()
                program.start().ready(120)
            until(lambda: load.is_enough, 3600, "all events accepted")
            until(lambda: len(load.dropped) >= wanted / 20, 3600, "all files dropped")
        group.all_read(program, timeout=600)
        seen = len(load.dropped)
        until(lambda: counted(program, "events WHERE trigger LIKE 'files:%'") >= seen, 90, "files")
        load.finish()
        until(lambda: not counted(program, "windows WHERE state = 'open'"), 90, "all closed")
        program.quiet(600)
        due = (
            "events WHERE after_run_action = 0" if full else f"({MOVED} AND e.after_run_action = 0)"
        )
        until(lambda: not counted(program, due), 90, "moves")  # what stays waits for maintenance
        assert program.stop(60) == 0
        program.check_journal()
    found, sources, flows = problems(program.data, load)
    ends, held = asyncio.run(kafka.ends(group.topic)), places(program.data)
    say(f"{sum(sources.values())} events {dict(sources)} in {len(flows)} flows")
    assert found == [], found[:20]
    assert group.committed() == held == ends
    assert set(sources) == {"webhook", "api", "files", "kafka"}
    assert len(flows) == FLOW_COUNT or not full, flows
