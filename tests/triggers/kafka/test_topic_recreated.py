"""Topics deleted and recreated under a trigger: noticed, logged, and read from their start."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka import (  # type: ignore[import-untyped]  # it carries no types
    AIOKafkaConsumer,
    TopicPartition,
)
from aiokafka.admin import (  # type: ignore[import-untyped]  # as above
    NewPartitions,
    RecordsToDelete,
)

from tests.support.brokers import Broker, PrivateKafka, unique
from tests.support.trigger_contract import RecordingEmitter, watch
from turnout.service.domain.errors import Overloaded
from turnout.triggers import kafka as kafka_trigger
from turnout.triggers.kafka import KafkaTrigger, kafka, pause
from turnout.triggers.kafka.commits import Commits
from turnout.triggers.kafka.positions import Bounds, Position, Positions
from turnout.triggers.kafka.start_offsets import StartOffsets

from .reading import commit, emitter_for, quick_checks, with_client_options

__all__ = ["quick_checks"]  # the fixture

pytestmark = pytest.mark.usefixtures("quick_checks")

Alarms = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def alarms(capsys: pytest.CaptureFixture[str]) -> Alarms:
    """Return the alarms of `triggers.kafka` since it was last asked."""

    def since() -> list[dict[str, Any]]:
        said = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        return [line for line in said if line["level"] == "error"]

    return since


def reading(topic: str, start: str = "earliest") -> KafkaTrigger:
    return kafka(topic, group=unique("group"), start=start, session="2s")


async def recreate(broker: Broker, topic: str, partitions: int = 1) -> None:
    await broker.delete_topic(topic)
    await broker.create_topic(topic, partitions)


async def send(broker: Broker, topic: str, first: int, behind: int, partition: int = 0) -> None:
    await broker.send(topic, [b"%d" % n for n in range(first, behind)], partition=partition)


async def read_to(broker: Broker, count: int) -> tuple[str, KafkaTrigger, RecordingEmitter]:
    """Return a topic, and the trigger and the emitter that have read its `count` records."""
    topic = await broker.create_topic()
    trigger, emit = reading(topic), emitter_for(broker)
    await send(broker, topic, 0, count)
    async with watch(trigger, emit):
        await emit.stored(count)
    return topic, trigger, emit


def delivered(emit: RecordingEmitter) -> list[tuple[str, str, str]]:
    """Return epoch, partition and offset of what was delivered."""
    found = [event.id.split("/")[2:] for event in emit.deliveries]
    return [(epoch, partition, offset) for epoch, partition, offset in found]


async def test_a_recreated_topic_is_read_from_its_start_in_a_new_epoch(
    kafka: Broker, alarms: Alarms
) -> None:
    """Whether it is empty, shorter than what was read, as long, or longer."""
    read: dict[int, str] = {}

    async def case(refilled: int) -> None:
        topic, trigger, emit = await read_to(kafka, 3)
        read[refilled] = topic
        await recreate(kafka, topic)
        if refilled:
            await send(kafka, topic, 100, 100 + refilled)
        async with watch(trigger, emit):
            await emit.stored(3 + refilled)
            await send(kafka, topic, 200, 205)
            await emit.stored(3 + refilled + 5)
        assert await kafka.committed(trigger.group, topic) == {0: refilled + 5}
        async with watch(trigger, emit):  # and it stays so: no further epoch
            await send(kafka, topic, 300, 301)
            await emit.stored(3 + refilled + 6)
        assert delivered(emit) == [("1", "0", str(n)) for n in range(3)] + [
            ("2", "0", str(n)) for n in range(refilled + 6)
        ]

    async with asyncio.TaskGroup() as cases:
        for refilled in (0, 1, 3, 10):
            cases.create_task(case(refilled))
    found = alarms()
    assert {(alarm["message"], alarm["partition"]) for alarm in found} == {
        ("kafka.topic_recreated", f"{topic}/0") for topic in read.values()
    }
    for alarm in found:
        assert (alarm["position"], alarm["reads_from"], alarm["epoch"]) == (3, 0, 2)
    assert len(found) == len(read) == 4


async def test_a_recreated_topic_under_a_reading_member_is_noticed(
    kafka: Broker, alarms: Alarms
) -> None:
    if kafka.kind == "mesh":
        pytest.skip("asking for a deleted topic makes it here")
    topic = await kafka.create_topic()
    trigger, emit = reading(topic), emitter_for(kafka)
    await send(kafka, topic, 0, 3)
    async with watch(trigger, emit):
        await emit.stored(3)
        await recreate(kafka, topic)
        await send(kafka, topic, 100, 110)
        second = {("2", "0", str(n)) for n in range(10)}
        await emit.until(lambda: second <= set(delivered(emit)), 15)
        assert emit.stored_positions[f"{topic}/0"].startswith('{"next": 10, "epoch": 2')
    assert [alarm["message"] for alarm in alarms()] == ["kafka.topic_recreated"]


async def test_what_was_never_read_of_a_recreated_topic_begins_at_its_start(
    kafka: Broker, alarms: Alarms
) -> None:
    if kafka.kind == "mesh":
        pytest.skip("it keeps a deleted topic's offsets")
    topic = await kafka.create_topic(partitions=2)
    trigger, emit = reading(topic, start="latest"), emitter_for(kafka)
    async with watch(trigger, emit):
        await send(kafka, topic, 0, 3)
        await emit.stored(3)
    again = emitter_for(kafka)
    again.stored_positions = dict(emit.stored_positions)
    del again.stored_positions[f"{topic}/1"]  # as if it had always been another member's
    await recreate(kafka, topic, partitions=2)
    await send(kafka, topic, 100, 104, partition=1)
    async with watch(trigger, again):
        await again.stored(4)
    assert delivered(again) == [("1", "1", str(n)) for n in range(4)]
    assert [alarm["partition"] for alarm in alarms()] == [f"{topic}/0"]


async def test_a_member_goes_on_where_others_have_read_the_new_topic_to(
    kafka: Broker, alarms: Alarms
) -> None:
    """Its own journal knows the old topic only; the group's offset says which one it is of."""
    if kafka.kind == "mesh":
        pytest.skip("it keeps no word with a committed offset")
    topic = await kafka.create_topic()
    trigger = reading(topic)
    early, late = emitter_for(kafka), emitter_for(kafka)
    await send(kafka, topic, 0, 3)
    for emit in (early, late):
        await commit(kafka, trigger.group, topic, 0)
        async with watch(trigger, emit):
            await emit.stored(3)
    await recreate(kafka, topic)
    await send(kafka, topic, 100, 110)
    async with watch(trigger, early):
        await early.stored(13)
    await send(kafka, topic, 110, 115)
    async with watch(trigger, late):
        await late.stored(8)
    assert [event.data for event in late.deliveries] == [0, 1, 2, *range(110, 115)]
    assert [alarm["reads_from"] for alarm in alarms()] == [0, 10]


async def test_what_leaves_a_topic_itself_is_not_recreated(kafka: Broker, alarms: Alarms) -> None:
    """A restart, more partitions, changed settings, expired records."""
    topic, trigger, emit = await read_to(kafka, 5)
    if kafka.kind != "mesh":
        async with kafka.admin() as admin:
            await admin.create_partitions({topic: NewPartitions(2)})
            await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(5)})
    await send(kafka, topic, 5, 8)
    async with watch(trigger, emit):
        await emit.stored(8)
    assert delivered(emit) == [("1", "0", str(n)) for n in range(8)]
    assert alarms() == []


async def test_a_compacted_topic_is_not_recreated(kafka: Broker, alarms: Alarms) -> None:
    if kafka.kind == "mesh":
        pytest.skip("this broker compacts nothing")
    settings: dict[str, Any] = {
        "cleanup.policy": "compact",
        "segment.ms": "50",
        "min.cleanable.dirty.ratio": "0.01",
    }
    topic = await kafka.create_topic(**settings)
    trigger, emit = reading(topic), emitter_for(kafka)
    await kafka.send(topic, [b"%d" % n for n in range(5)], key=b"k")
    async with watch(trigger, emit):
        await emit.stored(5)
    sent = 5
    while (await kafka.records(topic))[0].offset < 5:  # the records read last are gone
        await kafka.send(topic, [b"%d" % sent], key=b"k")
        sent += 1
    async with watch(trigger, emit):
        await emit.until(lambda: delivered(emit)[-1] == ("1", "0", str(sent - 1)))
    assert len(set(delivered(emit))) == len(delivered(emit))
    assert alarms() == []


async def test_positions_from_before_topic_ids_are_continued(kafka: Broker, alarms: Alarms) -> None:
    topic, trigger, emit = await read_to(kafka, 3)
    known = dict(emit.stored_positions)
    for key, text in known.items():
        emit.stored_positions[key] = re.sub(r', ?"(topic|id)": ?"[^"]+"', "", text)
    assert emit.stored_positions[f"{topic}/0"].startswith('{"next": 3, "epoch": 1')
    async with watch(trigger, emit):
        await emit.until(lambda: emit.stored_positions == known)
        await send(kafka, topic, 3, 5)
        await emit.stored(5)
    assert delivered(emit) == [("1", "0", str(n)) for n in range(5)]
    assert alarms() == []


async def test_what_was_owed_of_the_old_topic_is_not_told_of_the_new_one(kafka: Broker) -> None:
    topic, group = await kafka.create_topic(), unique("group")
    partition = TopicPartition(topic, 0)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka.bootstrap, group_id=group, enable_auto_commit=False
    )
    await consumer.start()
    try:
        consumer.assign([partition])
        commits = Commits(consumer, "kafka:test", Positions())
        commits.note(partition, Position(9))
        await commits.commit_starts({partition: Position(1, 2)}, {partition: Bounds(0, 5, None)})
        await commits.commit()
        assert await kafka.committed(group, topic) == {0: 1}
        commits.note(partition, Position(4, 2))
        await commits.commit()
        assert await kafka.committed(group, topic) == {0: 4}
    finally:
        await consumer.stop()


async def test_a_deleted_topic_stays_deleted_where_the_broker_makes_topics(
    private_kafka: PrivateKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the trigger names it or has a pattern."""
    with_client_options(monkeypatch, metadata_max_age_ms=250)
    monkeypatch.setattr(kafka_trigger, "_RETRY_SECONDS", (0.5, 0.5))
    async with private_kafka("auto.create.topics.enable=true") as broker:
        if broker.kind == "mesh":
            pytest.skip("asking for a deleted topic makes it here")
        async with asyncio.TaskGroup() as cases:
            for named in (True, False):
                cases.create_task(_stays_deleted(broker, named=named))


async def _stays_deleted(broker: Broker, *, named: bool) -> None:
    topic = await broker.create_topic(partitions=3)
    names, pattern = ((topic,), None) if named else ((), f"{topic}.*")
    trigger = kafka(*names, group=unique("group"), pattern=pattern, start="earliest", session="2s")
    emit = emitter_for(broker)
    await broker.send(topic, [b"1"], partition=0)
    async with watch(trigger, emit), broker.admin() as admin:
        await emit.stored(1)
        await admin.delete_topics([topic])
        if named:
            await emit.until(lambda: not emit.is_up, 15)
        looks = 0.0
        while looks < 1.5:  # of the trigger and of its client, every quarter of a second or two
            await asyncio.sleep(0.1)
            looks += 0.1
            assert topic not in await admin.list_topics()
        await broker.create_topic(topic, partitions=3)
        await broker.send(topic, [b"2"], partition=2)
        await emit.until(lambda: len(emit.deliveries) == 2, 45)


async def test_an_alarm_is_said_once_however_often_the_journal_refuses_it(
    kafka: Broker, alarms: Alarms, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kafka.kind == "mesh":
        pytest.skip("this broker deletes no records")
    monkeypatch.setattr(pause, "_SECONDS", (0.05, 0.5))
    topic, trigger, emit = await read_to(kafka, 3)
    await send(kafka, topic, 3, 13)
    async with kafka.admin() as admin:
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(8)})
    emit.fail(Overloaded("the trigger is paused"))
    async with watch(trigger, emit):
        await emit.until(lambda: emit.refused >= 4, 15)
        assert alarms() == [], "nothing is stored yet"
        emit.mend()
        await emit.stored(3 + 5)
    assert [(alarm["message"], alarm["lost"]) for alarm in alarms()] == [
        ("kafka.records_expired", 5)
    ]
    assert [event.data for event in emit.deliveries[3:]] == list(range(8, 13))


async def test_a_refused_placing_is_tried_again_ever_more_rarely(
    kafka: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, trigger, emit = await read_to(kafka, 3)
    if kafka.kind == "mesh":
        pytest.skip("this broker deletes no records")
    await send(kafka, topic, 3, 13)
    async with kafka.admin() as admin:
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(8)})
    times: list[float] = []
    honest = StartOffsets.choose

    async def timed(self: StartOffsets, *rest: Any) -> Any:
        times.append(asyncio.get_running_loop().time())
        return await honest(self, *rest)

    monkeypatch.setattr(StartOffsets, "choose", timed)
    emit.fail(Overloaded("the trigger is paused"))
    async with watch(trigger, emit):
        await emit.until(lambda: len(times) >= 5, 20)
    assert times[4] - times[3] > 2 * (times[1] - times[0])
