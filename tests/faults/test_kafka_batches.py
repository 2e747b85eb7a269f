"""A consumer that runs records by batches is killed: no record is lost, and none runs twice."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import Say
from tests.support.brokers import Broker
from tests.support.program import Program, until

from .ledger import copied
from .records import SHORT_SESSION, Feeder, Group, places

FLOWS = Path(__file__).parent / "flows" / "batches.py"

pytestmark = pytest.mark.timeout(600)


def results(data: Path) -> list[list[int]]:
    """Return the records of each run of a journal."""
    with copied(data) as journal:
        rows = journal.execute(
            "SELECT CAST(result AS TEXT) FROM runs WHERE state = 'succeeded' ORDER BY seq"
        ).fetchall()
        others = journal.execute(
            "SELECT state, count(*) FROM runs WHERE state <> 'succeeded' GROUP BY state"
        ).fetchall()
    assert others == []
    return [json.loads(row[0]) for row in rows]


def read_something(program: Program) -> None:
    """Wait until a started consumer has journaled a record."""
    before = sum(places(program.data, live=True).values())
    until(lambda: sum(places(program.data, live=True).values()) > before, 60, "a record read")


def test_killed_consumers_of_batches_lose_and_double_nothing(
    kafka: Broker, tmp_path: Path, seed: int, full: bool, say: Say
) -> None:
    group, dice, ahead = Group.on(kafka, partitions=4), random.Random(seed), list[str]()
    feeder = Feeder(broker=kafka, topic=group.topic, pace=1000 if full else 600)
    program = group.program(tmp_path / "member", **SHORT_SESSION)
    program.flows = FLOWS
    with program:
        with feeder.running():
            for _ in range(20 if full else 2):
                program.start().ready(60)
                read_something(program)
                time.sleep(dice.uniform(0.02, 0.8))
                program.kill()
                ahead += group.ahead(program)
            program.start().ready(60)
        group.all_read(program)
        # What is open when all is read fires at its deadline.
        until(lambda: _open_windows(program) == 0, 30, "every batch fired")
        program.quiet(30)
        assert program.stop() == 0
        program.check_journal()
    batches = results(program.data)
    ran = Counter(number for batch in batches for number in batch)
    say(f"{len(ran)} records in {len(batches)} batches")
    assert ahead == []
    assert set(ran) == feeder.acknowledged
    assert [number for number, times in ran.items() if times > 1] == []
    assert max(map(len, batches)) == 50


def _open_windows(program: Program) -> int:
    path = program.data / "journal" / "journal.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
        (count,) = journal.execute("SELECT count(*) FROM windows WHERE state = 'open'").fetchone()
    return int(count)
