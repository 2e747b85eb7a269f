"""Kafka triggers keep the contract, and each record is one run."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka.client import AIOKafkaClient  # type: ignore[import-untyped]  # it carries no types

from tests.support.brokers import Broker, unique
from tests.support.trigger_contract import (
    RecordingEmitter,
    TriggerCase,
    TriggerContract,
    watch,
)
from turnout.handlers.flow import flow
from turnout.service.domain.event import Event
from turnout.service.domain.run import RunState
from turnout.service.journal.records import Filter
from turnout.triggers.kafka.start_offsets import StartOffsets

from .reading import (
    Item,
    commit,
    emitter_for,
    ended,
    kafka_trigger,
    quick_rebalances,
    serving,
    watching,
)

__all__ = ["quick_rebalances"]  # the fixture


FETCH = 1
"""The number of the request for records."""


class KafkaCase:
    keeps_input = True
    positions_guard = True

    def __init__(self, broker: Broker, topic: str) -> None:
        self.broker = broker
        self.topic = topic
        self.trigger = kafka_trigger(topic, group=unique("group"), start="earliest")
        self.sent = 0

    def emitter(self) -> RecordingEmitter:
        self.emit = emitter_for(self.broker)
        return self.emit

    def watching(self, emit: RecordingEmitter) -> Any:
        return watch(self.trigger, emit)

    async def make_input(self) -> None:
        self.sent += 1
        await self.broker.send(self.topic, [orjson.dumps({"n": self.sent})])

    async def redeliver(self) -> None:
        read = self.acknowledged()
        while self.acknowledged() == read:  # the last transaction may be of something else
            self.emit.rewind()
        await commit(self.broker, self.trigger.group, self.topic, 0)

    def acknowledged(self) -> int:
        stored = self.emit.stored_positions.get(f"{self.topic}/0")
        return 0 if stored is None else int(orjson.loads(stored)["next"])


class TestKafkaKeepsTheContract(TriggerContract):
    @pytest.fixture
    async def case(self, kafka: Broker) -> TriggerCase:
        return KafkaCase(kafka, await kafka.create_topic())


async def test_each_record_is_one_run_in_the_order_of_its_partition(
    tmp_path: Path, kafka: Broker
) -> None:
    topic = await kafka.create_topic(partitions=3)
    seen: list[tuple[str, int]] = []

    @flow(on=kafka_trigger(topic, group=unique("group"), start="earliest"), ordered_by="partition")
    async def keep(event: Event, item: Item) -> None:
        seen.append((event.extensions["partition"], item.id))

    sent = [
        await kafka.send(topic, [orjson.dumps({"id": n}) for n in range(100)], partition=part)
        for part in range(3)
    ]
    async with serving(tmp_path, kafka, keep) as process:
        runs = await ended(process, 300)
        assert len(runs) == 300
        event = (await process.process.journal.event(runs[0].event_id))[0].event
    assert {run.state for run in runs} == {RunState.SUCCEEDED}
    for part in range(3):
        assert [n for name, n in seen if name == f"{topic}/{part}"] == list(range(100))
    cluster, named, epoch, part_text, offset = event.id.split("/")
    assert (named, epoch) == (topic, "1")
    assert (int(part_text), int(offset)) in [place for places in sent for place in places]
    assert cluster and event.source == f"kafka://{cluster}/{topic}"


async def test_records_of_a_key_run_in_order_and_keys_beside_each_other(
    tmp_path: Path, kafka: Broker
) -> None:
    topic = await kafka.create_topic(partitions=2)
    seen: dict[str | None, list[int]] = {}
    at_once, most = 0, 0

    @flow(on=kafka_trigger(topic, group=unique("group"), start="earliest"), ordered_by="key")
    async def keep(event: Event, item: Item) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.02 if item.id % 2 else 0)  # so that a later one could overtake
        seen.setdefault(event.subject, []).append(item.id)
        at_once -= 1

    for key in ("a", "b", "c", "d"):
        values = [orjson.dumps({"id": n}) for n in range(20)]
        await kafka.send(topic, values, key=key.encode())
    async with serving(tmp_path, kafka, keep) as process:
        await ended(process, 80)
    assert seen == {key: list(range(20)) for key in "abcd"}
    assert most > 1


async def test_an_instant_and_a_pattern_say_what_is_read(tmp_path: Path, kafka: Broker) -> None:
    if kafka.kind == "mesh":
        pytest.skip("this broker does not look offsets up by time")
    stem = unique("dated")
    topics = [await kafka.create_topic(f"{stem}-{name}") for name in "ab"]
    await kafka.create_topic(f"other-{stem}-a")
    for topic in topics:
        await kafka.send(topic, [b'{"id": 1}'])
    last = max([one.timestamp for topic in topics for one in await kafka.records(topic)])
    instant = datetime.fromtimestamp(last / 1000, UTC) + timedelta(milliseconds=1)
    for topic in (*topics, f"other-{stem}-a"):
        await kafka.send(topic, [b'{"id": 2}'])
    trigger = kafka_trigger(pattern=f"{stem}-.", group=unique("group"), start=instant)

    @flow(on=trigger)
    async def keep(event: Event, item: Item) -> str:
        return f"{event.extensions['partition']} {item.id}"

    async with serving(tmp_path, kafka, keep) as process:
        runs = await ended(process, 2)
    assert sorted(orjson.loads(run.result or b"") for run in runs) == [
        f"{topic}/0 2" for topic in topics
    ]


async def test_a_restart_neither_repeats_nor_skips_and_kafka_is_told(
    tmp_path: Path, kafka: Broker
) -> None:
    topic, group = await kafka.create_topic(), unique("group")
    trigger = kafka_trigger(topic, group=group, start="earliest")

    @flow(on=trigger)
    async def keep(item: Item) -> int:
        return item.id

    await kafka.send(topic, [orjson.dumps({"id": n}) for n in range(5)])
    async with serving(tmp_path, kafka, keep) as process:
        await ended(process, 5)
    assert await kafka.committed(group, topic) == {0: 5}
    await commit(kafka, group, topic, 2)  # as if the last commits had been lost
    await kafka.send(topic, [orjson.dumps({"id": n}) for n in range(5, 8)])
    async with serving(tmp_path, kafka, keep) as process:
        runs = await ended(process, 8)
    assert sorted(int(run.result or b"-1") for run in runs) == list(range(8))
    assert await kafka.committed(group, topic) == {0: 8}


async def test_latest_is_resolved_once(tmp_path: Path, kafka: Broker) -> None:
    topic = await kafka.create_topic()
    trigger = kafka_trigger(topic, group=unique("group"))

    @flow(on=trigger)
    async def keep(item: Item) -> int:
        return item.id

    await kafka.send(topic, [b'{"id": 1}'])
    async with serving(tmp_path, kafka, keep) as process:
        await watching(process)
    await kafka.send(topic, [b'{"id": 2}'])  # while nobody reads, and nothing was ever read
    async with serving(tmp_path, kafka, keep) as process:
        runs = await ended(process, 1)
    assert [run.result for run in runs] == [b"2"]


async def test_nothing_is_fetched_before_a_start_is_chosen(
    kafka: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fetch that waits for records would hold up what is asked of the same broker behind it."""
    topic = await kafka.create_topic()
    trigger = kafka_trigger(topic, group=unique("group"), start="earliest")
    emit = emitter_for(kafka)
    began, chosen, asked = 0, 0, 0
    choose, send = StartOffsets.choose, AIOKafkaClient.send

    async def counted(self: StartOffsets, *rest: Any) -> Any:
        nonlocal began, chosen
        began += 1
        found = await choose(self, *rest)
        chosen += 1
        return found

    async def noted(self: AIOKafkaClient, node: int, request: Any, **more: Any) -> Any:
        nonlocal asked
        asked += began > chosen and request.API_KEY == FETCH
        return await send(self, node, request, **more)

    monkeypatch.setattr(StartOffsets, "choose", counted)
    monkeypatch.setattr(AIOKafkaClient, "send", noted)
    for count in (1, 2, 3):
        async with watch(trigger, emit):
            await kafka.send(topic, [b"%d" % count])
            await emit.stored(count)
    assert (chosen, asked) == (3, 0)


async def test_more_at_hand_than_one_turn_takes_is_read_to_the_end(kafka: Broker) -> None:
    topic = await kafka.create_topic(partitions=2)
    trigger = kafka_trigger(topic, group=unique("group"), start="earliest")
    emit = emitter_for(kafka)
    count = 20_000
    for part in range(2):
        await kafka.send(topic, [b"%d" % n for n in range(count // 2)], partition=part)
    async with watch(trigger, emit):
        await emit.stored(count)
    for part in range(2):
        read = [event.data for event in emit.deliveries if f"/1/{part}/" in event.id]
        assert read == list(range(count // 2))


async def test_what_no_flow_wants_is_counted_and_one_is_kept(tmp_path: Path, kafka: Broker) -> None:
    topic = await kafka.create_topic()
    trigger = kafka_trigger(topic, group=unique("group"), start="earliest")

    @flow(on=trigger, when=lambda event: event.data["id"] == 49)
    async def keep(item: Item) -> None:
        pass

    await kafka.send(topic, [orjson.dumps({"id": n}) for n in range(50)])
    async with serving(tmp_path, kafka, keep) as process:
        await ended(process, 1)
        counted = process.process.metrics.events.labels(trigger.name, "filtered")
        journal = process.process.journal
        listed = await journal.events(Filter(limit=100))
        events = [(await journal.event(stored.event.id))[0] for stored in listed]
        assert counted.value == 48
    assert [stored.event.data["id"] for stored in events] == [49, 0]
    assert listed[1].decisions[0]["reason"] == "filtered"
