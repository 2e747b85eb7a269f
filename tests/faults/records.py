"""Kafka records in, runs out: who produces them, and what the journals must say in the end.

The truth is the topic itself, read from its start when all is over: each record in it is owed one
run, whatever producers, brokers and consumers went through. A run names its record by the partition
and offset in its event's id; the epoch there does not count, so a wrong epoch shows as a double.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka.errors import KafkaError  # type: ignore[import-untyped]  # it carries no types

from tests.support.brokers import Broker, unique
from tests.support.program import Program, until

from .ledger import Snapshot, copied

FLOWS = Path(__file__).parent / "flows" / "records.py"

SHORT_SESSION = {"TURNOUT_TEST_SESSION": "1s"}
"""For the only member of its group: after a kill, the next one waits until its session is over."""


@dataclass(kw_only=True)
class Feeder:
    """A producer in a thread of its own that is never killed and knows what was acknowledged.

    It sends `most` records, in tens.
    """

    broker: Broker
    topic: str
    pace: float
    padding: int = 200
    most: int = sys.maxsize
    acknowledged: set[int] = field(default_factory=set)

    _leaving: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Produce inside the block; at its end everything produced is acknowledged or refused."""
        errors: list[BaseException] = []

        def work() -> None:
            try:
                asyncio.run(self._feed())
            except BaseException as error:  # noqa: BLE001  handed to the test's own thread
                errors.append(error)

        thread = threading.Thread(target=work, name="feeder", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._leaving.set()
            thread.join(60)
        if errors:
            raise errors[0]

    def has_sent(self, count: int, timeout: float = 60) -> None:
        """Wait until so many records are acknowledged."""
        until(lambda: len(self.acknowledged) >= count, timeout, f"{count} records acknowledged")

    async def _feed(self) -> None:
        async with self.broker.producer() as producer:
            number = 0
            while not self._leaving.is_set() and number < self.most:
                for _ in range(10):
                    value = json.dumps({"number": number, "padding": "x" * self.padding})
                    sent = await producer.send(self.topic, value.encode(), str(number).encode())
                    sent.add_done_callback(lambda done, which=number: self._note(which, done))
                    number += 1
                if self.broker.kind == "mesh":
                    await producer.flush()
                await asyncio.sleep(10 / self.pace)
            await producer.flush()

    def _note(self, number: int, done: asyncio.Future[Any]) -> None:
        error = done.exception()
        if error is None:
            self.acknowledged.add(number)
        elif not isinstance(error, KafkaError):
            raise error


@dataclass(kw_only=True)
class Group:
    """A consumer group of turnout processes on one topic, and what must hold for it."""

    broker: Broker
    topic: str
    name: str = field(default_factory=lambda: unique("group"))

    @classmethod
    def on(cls, broker: Broker, partitions: int) -> Group:
        """Return a group on a new topic."""
        return cls(broker=broker, topic=asyncio.run(broker.create_topic(partitions=partitions)))

    def program(self, folder: Path, *, sabotage: str = "", **env: str) -> Program:
        """Return a member with a journal of its own in `folder`, not started."""
        folder.mkdir(exist_ok=True)
        return Program(
            flows=FLOWS,
            data=folder / "data",
            log=folder / "log",
            sabotage=sabotage,
            env={
                "TURNOUT_KAFKA_BOOTSTRAP_SERVERS": self.broker.bootstrap,
                "TURNOUT_TEST_TOPIC": self.topic,
                "TURNOUT_TEST_GROUP": self.name,
                "TURNOUT_MIN_FREE_BYTES": "0",
                **env,
            },
        )

    def committed(self) -> dict[int, int]:
        """Return what the group has committed."""
        return asyncio.run(self.broker.committed(self.name, self.topic))

    def truth(self) -> dict[tuple[int, int], int]:
        """Return the number of each record of the topic by its partition and offset."""
        return numbers(asyncio.run(self.broker.records(self.topic)))

    def ahead(self, *members: Program) -> list[str]:
        """Return where Kafka was told more than any journal holds; members are dead or stopped."""
        held: Counter[int] = Counter()
        for member in members:
            held |= Counter(places(member.data))  # the union of counters keeps the larger count
        return [
            f"partition {partition}: committed {offset}, journaled {held[partition]}"
            for partition, offset in self.committed().items()
            if offset > held[partition]
        ]

    def unread_by(self, *members: Program) -> int:
        """Return how many records no member has journaled, as things are now."""
        held: Counter[int] = Counter()
        for member in members:
            held |= Counter(places(member.data, live=True))
        ends = asyncio.run(self.broker.ends(self.topic))
        return sum(max(0, end - held[partition]) for partition, end in ends.items())

    def all_read(self, *members: Program, timeout: float = 60) -> None:
        """Wait until every record is journaled and every run has ended."""
        until(lambda: not self.unread_by(*members), timeout, "every record journaled")
        for member in members:
            member.quiet(timeout)


def numbers(records: Iterable[Any]) -> dict[tuple[int, int], int]:
    """Return what each record says by its partition and offset."""
    return {(one.partition, one.offset): json.loads(one.value)["number"] for one in records}


@contextmanager
def stopped(program: Program) -> Iterator[None]:
    """Hold a program's clock inside the block, so that its journal and Kafka can be compared."""
    program.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        program.signal(signal.SIGCONT)


def places(data: Path, *, live: bool = False) -> dict[int, int]:
    """Return the offset each partition of the one topic is journaled up to."""
    if not (data / "journal" / "journal.db").exists():
        return {}
    if live:
        with closing(
            sqlite3.connect(f"file:{data}/journal/journal.db?mode=ro", uri=True)
        ) as journal:
            return _places(journal)
    with copied(data) as journal:
        return _places(journal)


def _places(journal: sqlite3.Connection) -> dict[int, int]:
    try:
        rows = journal.execute(
            "SELECT partition, value FROM positions WHERE trigger LIKE 'kafka:%'"
        ).fetchall()
    except sqlite3.OperationalError:  # no table yet: it died, or is, in its first moments
        return {}
    found = {key.rpartition("/")[2]: json.loads(value) for key, value in rows if "/" in key}
    return {int(partition): place["next"] for partition, place in found.items()}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Records without a run, runs too many for a record, and runs that are wrong in themselves."""

    lost: list[tuple[int, int]]
    doubled: int
    wrong: list[str]


def judge(truth: dict[tuple[int, int], int], journals: Iterable[Snapshot]) -> Verdict:
    """Set what the topic holds against what the journals say."""
    runs: Counter[tuple[int, int]] = Counter()
    wrong = []
    for journal in journals:
        for run in journal.runs.values():
            *_, partition, offset = run.event.split("/")
            record = int(partition), int(offset)
            runs[record] += 1
            if run.state != "succeeded" or run.result != str(truth.get(record)):
                wrong.append(f"{run.event}: {run.state} with {run.result}, not {truth.get(record)}")
    lost = sorted(truth.keys() - runs.keys())
    return Verdict(lost, sum(times - 1 for times in runs.values()), wrong)
