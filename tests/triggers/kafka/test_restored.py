"""After a restore the journal alone says what was read: Kafka's offsets are of a lost time.

The program runs as its operator has it; the flow notes each execution outside of the journal.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.ledger import snapshot
from tests.support.brokers import Broker, unique
from tests.support.program import Program, turnout, until

pytestmark = pytest.mark.timeout(180)

FLOWS = """
import os
from turnout import flow, kafka

@flow(on=kafka("{topic}", group="{group}", start="{start}", session="6s"), ordered_by="key")
def bill(order: int) -> int:
    with open("{witness}", "a") as file:
        file.write(f"{{order}}\\n")
    return order
"""

BELIEVE_KAFKA = """
from turnout.triggers.kafka.positions import Bounds

Bounds.seen_by = lambda self, member: self
"""

BEFORE, AFTER = range(20), range(20, 50)


class Shop:
    """A topic of numbered orders, and the program that reads it."""

    def __init__(self, broker: Broker, folder: Path, *, start: str = "earliest") -> None:
        self.broker = broker
        self.folder = folder
        self.topic, self.group = unique("orders"), unique("group")
        asyncio.run(broker.create_topic(self.topic, partitions=3))
        self.witness = folder / "witness"
        self.flows = folder / "flows.py"
        self.flows.write_text(
            FLOWS.format(topic=self.topic, group=self.group, start=start, witness=self.witness)
        )

    def program(self, name: str = "data", *, sabotage: str = "") -> Program:
        env = {"TURNOUT_KAFKA_BOOTSTRAP_SERVERS": self.broker.bootstrap}
        log = self.folder / f"{name}.log"
        return Program(
            flows=self.flows, data=self.folder / name, log=log, env=env, sabotage=sabotage
        )

    def send(self, orders: range) -> None:
        asyncio.run(self._send(orders))

    async def _send(self, orders: range) -> None:
        for partition in range(3):
            values = [b"%d" % order for order in orders if order % 3 == partition]
            await self.broker.send(self.topic, values, partition=partition)

    def executed(self) -> Counter[int]:
        """Return how often each order was executed."""
        lines = self.witness.read_text().split() if self.witness.exists() else []
        return Counter(int(line) for line in lines)

    def committed(self) -> int:
        return sum(asyncio.run(self.broker.committed(self.group, self.topic)).values())

    def ran(self, program: Program, orders: range, times: int) -> None:
        """Wait until these orders were executed so often, and no run is unfinished."""

        def did() -> bool:
            executed = self.executed()
            return all(executed[order] >= times for order in orders)

        until(did, 60, f"{orders} executed {times} times")
        program.quiet(20)

    def backup(self, program: Program) -> Path:
        done = turnout("backup", "--to", self.folder / "backups", "--data", program.data)
        assert done.returncode == 0, done.stderr
        return max((self.folder / "backups").glob("*.tar"))


@contextmanager
def lost_after_backup(shop: Shop, program: Program) -> Iterator[None]:
    """Read some orders, make a backup, read more, stop, and restore the backup."""
    program.start().ready()
    shop.send(BEFORE)
    shop.ran(program, BEFORE, 1)
    backup = shop.backup(program)
    shop.send(AFTER)
    shop.ran(program, AFTER, 1)
    assert program.stop() == 0
    assert shop.committed() == len(BEFORE) + len(AFTER), "Kafka was told of all of it"
    done = turnout("restore", backup, "--data", program.data)
    assert done.returncode == 0, done.stderr
    yield


def test_records_after_the_backup_are_read_again_and_none_before_it_twice(
    kafka: Broker, tmp_path: Path
) -> None:
    shop = Shop(kafka, tmp_path)
    with shop.program() as program, lost_after_backup(shop, program):
        program.start().ready()
        shop.ran(program, AFTER, 2)
        program.said(r"kafka\.reads_again", 5)
        assert program.stop() == 0
        said = program.log_text().count("kafka.reads_again")
        program.start().ready()  # and from now on as ever
        shop.send(range(50, 56))
        shop.ran(program, range(50, 56), 1)
        assert program.stop() == 0
        assert program.log_text().count("kafka.reads_again") == said
        program.check_journal()
        kept = [int(run.result or "") for run in snapshot(program.data).runs.values()]
    assert sorted(kept) == list(range(56)), "one run for each record"
    times = {order: 2 if order in AFTER else 1 for order in range(56)}
    assert shop.executed() == times


@pytest.mark.full
def test_a_partition_first_read_after_the_backup_is_read_again_too(
    kafka: Broker, tmp_path: Path
) -> None:
    shop = Shop(kafka, tmp_path)
    with shop.program() as program:
        program.start().ready()
        assert program.stop() == 0
        backup = shop.backup(program)
        program.start().ready()
        shop.send(BEFORE)
        shop.ran(program, BEFORE, 1)
        assert program.stop() == 0
        assert turnout("restore", backup, "--data", program.data).returncode == 0
        program.start().ready()
        shop.ran(program, BEFORE, 2)
        assert program.stop() == 0
    assert shop.executed() == dict.fromkeys(BEFORE, 2)


@pytest.mark.full
def test_where_another_journal_has_taken_over_its_offset_counts(
    kafka: Broker, tmp_path: Path
) -> None:
    shop = Shop(kafka, tmp_path)
    with shop.program() as program, lost_after_backup(shop, program):
        with shop.program("other") as other:
            other.start().ready()
            shop.send(range(50, 60))
            shop.ran(other, range(50, 60), 1)
            assert other.stop() == 0
        program.start().ready()
        shop.send(range(60, 66))
        shop.ran(program, range(60, 66), 1)
        assert program.stop() == 0
    assert shop.executed() == dict.fromkeys(range(66), 1)


def test_believing_kafka_after_a_restore_is_noticed(kafka: Broker, tmp_path: Path) -> None:
    shop = Shop(kafka, tmp_path)
    with shop.program(sabotage=BELIEVE_KAFKA) as program, lost_after_backup(shop, program):
        program.start().ready()
        shop.send(range(50, 56))
        shop.ran(program, range(50, 56), 1)
        assert program.stop() == 0
    assert shop.executed() == dict.fromkeys(range(56), 1), "the records of a lost time are skipped"
