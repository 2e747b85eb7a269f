"""The order of a key when members join and leave over a backlog, and that nothing is run twice."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.brokers import Broker, unique
from tests.support.running import Running, eventually
from turnout.handlers.flow import flow
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import Retry
from turnout.service.journal.records import Filter
from turnout.triggers.kafka import KafkaTrigger
from turnout.triggers.kafka import kafka as records_of
from turnout.triggers.kafka.commit_metadata import read_spans, spans_text
from turnout.triggers.kafka.positions import Position, read_position, union
from turnout.triggers.kafka.withdrawal import METADATA_BYTES, plan_partition

from .reading import quick_heartbeats, serving

__all__ = ["quick_heartbeats"]  # the fixture

pytestmark = pytest.mark.usefixtures("quick_heartbeats")

KEYS = 5
COUNT = 480


class Log:
    """What ran, in order, by key."""

    def __init__(self) -> None:
        self.by_key: dict[str, list[int]] = defaultdict(list)
        self.by_member: Counter[str] = Counter()
        self.running: Counter[str] = Counter()
        self.overlaps = 0

    @property
    def count(self) -> int:
        return sum(map(len, self.by_key.values()))

    def flow(self, member: str, trigger: KafkaTrigger, seconds: float = 0.03) -> Flow[..., Any]:
        @flow(on=trigger, ordered_by="key", name="keep")
        async def keep(event: Event) -> None:
            key = event.subject or event.id  # a record without a key has no order
            self.overlaps += self.running[key] > 0
            self.running[key] += 1
            self.by_key[key].append(event.data["n"])
            self.by_member[member] += 1
            try:
                await asyncio.sleep(seconds)
            finally:
                self.running[key] -= 1

        return keep

    def check(self, count: int = COUNT) -> None:
        back = {key: ran for key, ran in self.by_key.items() if ran != sorted(ran)}
        assert back == {}, "a record ran before an earlier one of its key"
        assert self.overlaps == 0, "two records of a key ran at once"
        assert sorted(n for ran in self.by_key.values() for n in ran) == list(range(count))


async def fill(kafka: Broker, topic: str, partitions: int, first: int = 0) -> None:
    """Send records of some keys to each partition, of which one has a third and is behind."""
    async with kafka.producer() as producer:
        for n in range(first, COUNT):
            part, turn = n % partitions, n // partitions
            key = f"{part}-hot" if turn % 3 == 0 else f"{part}-{turn * 7 % KEYS}"
            value = orjson.dumps({"n": n})
            await producer.send(topic, value, key=key.encode(), partition=part)


async def has_partitions(process: Running, trigger: KafkaTrigger, count: int) -> None:
    figures = process.process.emitters[trigger.name].status.figures
    await true(lambda: figures.get("partitions", 0) >= count)


@asynccontextmanager
async def member(
    folder: Path, kafka: Broker, one: Flow[..., Any], **settings: Any
) -> AsyncIterator[Running]:
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240  a test's own
    async with serving(folder, kafka, one, concurrency=8, **settings) as process:
        yield process


async def reached(log: Log, count: int) -> None:
    await true(lambda: log.count >= count)


async def true(fact: Callable[[], bool]) -> None:
    """Wait for a fact as long as rebalances may take."""
    async with asyncio.timeout(60):
        while not fact():  # noqa: ASYNC110  flows set no event
            await asyncio.sleep(0.005)


def only_apache(kafka: Broker) -> None:
    if kafka.kind == "mesh":
        pytest.skip("its rebalances take half a session, and it keeps no word with an offset")


async def test_a_member_that_joins_over_a_backlog_breaks_no_order(
    tmp_path: Path, kafka: Broker
) -> None:
    only_apache(kafka)
    topic, log = await kafka.create_topic(partitions=4), Log()
    trigger = records_of(topic, group=unique("group"), start="earliest")
    await fill(kafka, topic, 4)
    async with member(tmp_path / "a", kafka, log.flow("a", trigger, 0.06)) as first:
        await reached(log, 40)
        assert len(await first.process.journal.runs(Filter(limit=9999))) > 150, "a backlog"
        async with member(tmp_path / "b", kafka, log.flow("b", trigger, 0.06)):
            await reached(log, COUNT)
    assert log.by_member["b"] > 20
    log.check()
    assert sum((await kafka.committed(trigger.group, topic)).values()) == COUNT


@pytest.mark.parametrize("by", ["name", "pattern"])
async def test_a_member_that_leaves_over_a_backlog_breaks_no_order(
    tmp_path: Path, kafka: Broker, by: str
) -> None:
    only_apache(kafka)
    topic, log = await kafka.create_topic(partitions=4), Log()
    named = (topic,) if by == "name" else ()
    pattern = None if named else f"{topic}.*"
    trigger = records_of(*named, pattern=pattern, group=unique("group"), start="earliest")
    other = await kafka.create_topic(f"{topic}-other", partitions=2)
    async with member(tmp_path / "b", kafka, log.flow("b", trigger)):
        async with member(tmp_path / "a", kafka, log.flow("a", trigger)) as first:
            await has_partitions(first, trigger, 2)
            if not named:
                await kafka.send(other, [b'{"n": %d}' % n for n in range(COUNT, COUNT + 9)])
            await fill(kafka, topic, 4)
            await reached(log, 120)
            await first.process.stop()
        await reached(log, COUNT if named else COUNT + 9)
    assert log.by_member["a"] > 20
    log.check(COUNT if named else COUNT + 9)


async def test_a_lone_member_that_restarts_over_a_backlog_repeats_and_loses_nothing(
    tmp_path: Path, kafka: Broker
) -> None:
    only_apache(kafka)
    topic, log = await kafka.create_topic(partitions=2), Log()
    trigger = records_of(topic, group=unique("group"), start="earliest")
    await fill(kafka, topic, 2)
    for turn in range(3):
        async with member(tmp_path / "a", kafka, log.flow("a", trigger)) as process:
            await reached(log, 60 * (turn + 1))
            await process.process.stop()
    assert log.count < COUNT
    async with member(tmp_path / "a", kafka, log.flow("a", trigger)):
        await reached(log, COUNT)
    log.check()


async def test_members_that_come_and_go_break_no_order(tmp_path: Path, kafka: Broker) -> None:
    """Each of the three journals meets partitions again that others have had since."""
    only_apache(kafka)
    topic, log = await kafka.create_topic(partitions=3), Log()
    trigger = records_of(topic, group=unique("group"), start="earliest")
    await fill(kafka, topic, 3)
    async with member(tmp_path / "steady", kafka, log.flow("steady", trigger)):
        for turn in range(4):
            name = "ab"[turn % 2]
            async with member(tmp_path / name, kafka, log.flow(name, trigger)) as process:
                await has_partitions(process, trigger, 1)
                await reached(log, min(log.count + 60, COUNT))
                await process.process.stop()
        await reached(log, COUNT)
    log.check()


async def test_what_is_tried_again_soon_is_waited_for(tmp_path: Path, kafka: Broker) -> None:
    only_apache(kafka)
    topic, group = await kafka.create_topic(), unique("group")
    trigger = records_of(topic, group=group, start="earliest")
    ran: list[tuple[str, int]] = []

    def made(name: str) -> Flow[..., Any]:
        @flow(on=trigger, ordered_by="key", name="keep", retry=1)
        async def keep(event: Event) -> None:
            ran.append((name, event.data["n"]))
            if event.data["n"] == 0 and len(ran) == 1:
                raise Retry(after="2s")

        return keep

    await kafka.send(topic, [b'{"n": %d}' % n for n in range(3)], key=b"k")
    async with member(tmp_path / "a", kafka, made("a")):
        await true(lambda: bool(ran))
        async with member(tmp_path / "b", kafka, made("b")):
            await true(lambda: len(ran) >= 4)
    assert [n for _, n in ran] == [0, 0, 1, 2]
    assert ran[1][0] == "a"


async def test_without_an_order_nothing_is_given_back(tmp_path: Path, kafka: Broker) -> None:
    only_apache(kafka)
    topic, group = await kafka.create_topic(), unique("group")
    trigger = records_of(topic, group=group, start="earliest")
    ran: list[int] = []

    @flow(on=trigger)
    async def keep(event: Event) -> None:
        ran.append(event.data["n"])
        await asyncio.sleep(0.02)

    await kafka.send(topic, [b'{"n": %d}' % n for n in range(200)])
    async with member(tmp_path / "a", kafka, keep) as process:

        async def journaled() -> bool:
            found = await process.process.journal.positions(trigger.name)
            return found.get(f"{topic}/0", "").startswith('{"next": 200,')

        await eventually(journaled)
        await process.process.stop()
    assert (await kafka.committed(group, topic)) == {0: 200}


# ---------------------------------------------------------------- what is given back


@given(st.lists(st.booleans(), min_size=1, max_size=200), st.integers(0, 1000), st.data())
def test_what_is_given_back_and_what_is_done_are_all_there_was(
    fates: list[bool], start: int, data: st.DataObject
) -> None:
    waiting = {start + at: 7 + at for at, waits in enumerate(fates) if waits}
    begun = [start + at for at, waits in enumerate(fates) if not waits]
    back = plan_partition(
        Position(start, 2, topic="id"), waiting, data.draw(st.permutations(begun))
    )
    if not waiting:
        assert back is None
        return
    assert back is not None
    assert back.position == replace(
        back.position, next=min(waiting), epoch=2, topic="id", sought=False
    )
    for offset in range(back.position.next, start + len(fates)):
        assert back.position.is_done(offset) is (offset not in waiting)
    assert back.seqs == list(waiting.values())
    assert read_position(back.position.text()) == back.position
    text = spans_text(back.position.done, back.position.next)
    assert read_spans(text, back.position.next) == back.position.done


def test_no_more_is_given_back_than_words_reach_for() -> None:
    waiting = {offset: offset for offset in range(0, 100_000, 2)}
    back = plan_partition(Position(0), waiting, range(1, 100_000, 2))
    assert back is not None
    assert len(spans_text(back.position.done, back.position.next)) <= METADATA_BYTES
    assert len(back.seqs) > 500
    assert back.seqs[0] == back.position.next and back.seqs[-1] == 99_998


def test_what_is_below_the_start_position_stays() -> None:
    back = plan_partition(Position(10, done=((12, 13),)), {5: 1, 11: 2, 20: 3}, [6, 15])
    assert back is not None
    assert (back.position.next, back.seqs) == (11, [2, 3])
    assert back.position.done == ((12, 15),) or back.position.done == union(
        ((12, 13),), ((15, 15),)
    )


@pytest.mark.parametrize("text", ["", "x", "1+0", "1+2,", "1", "-1+2", "1+2;3+4"])
def test_words_that_are_no_offsets_say_nothing(text: str) -> None:
    assert read_spans(text, 5) == ()
