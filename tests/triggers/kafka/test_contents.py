"""What a record holds: keys, headers, nulls, CloudEvents, poison, and what cannot be read."""

from __future__ import annotations

import asyncio
import json
import struct
import sys
from pathlib import Path

import orjson
import pytest
from aiokafka import (  # type: ignore[import-untyped]  # it carries no types
    TopicPartition,
)
from aiokafka.protocol.produce import ProduceRequest  # type: ignore[import-untyped]  # as above
from aiokafka.record.util import calc_crc32c  # type: ignore[import-untyped]  # as above

from tests.support.brokers import Broker, unique
from turnout.handlers.flow import flow
from turnout.service.domain.event import Event
from turnout.service.domain.run import RunState
from turnout.service.domain.units import utc_now
from turnout.service.operate.verbs import Replay, ReplayDead
from turnout.triggers.kafka.raw_batch import parse
from turnout.triggers.kafka.record import bytes_of

from .reading import Item, ended, kafka_trigger, quick_rebalances, serving

__all__ = ["quick_rebalances"]  # the fixture


# ---------------------------------------------------------------- on the real journal

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
