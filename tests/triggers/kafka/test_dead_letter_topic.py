"""The dead letter topic: what is in it, and what never gets there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import ConsumerRecord  # type: ignore[import-untyped]  # it carries no types

from tests.support.brokers import Broker, unique
from tests.support.running import eventually
from turnout.handlers.flow import flow
from turnout.service.operate.verbs import Fire
from turnout.triggers.kafka import kafka as records_of
from turnout.triggers.kafka.record import text_of

from .reading import Item, ended, serving


async def test_failed_records_go_to_the_dead_letter_topic(tmp_path: Path, kafka: Broker) -> None:
    topic, dead_letters = await kafka.create_topic(), await kafka.create_topic()
    trigger = records_of(
        topic, group=unique("group"), start="earliest", dead_letter_topic=dead_letters
    )

    @flow(on=trigger)
    async def keep(item: Item) -> int:
        return item.id

    records = [b"{oops", b'{"id": 1}', b'{"id": "one"}']
    await kafka.send(topic, records, key=b"\xff", headers=[("x", b"\xfe")])

    async def posted() -> bool:
        return (await kafka.ends(dead_letters)) == {0: 2}

    async with serving(tmp_path, kafka, keep) as process:
        await ended(process, 3)
        await eventually(posted)
    for record, offset, reason in zip(
        sorted(await kafka.records(dead_letters), key=lambda record: record.value[::-1]),
        (0, 2),
        (b"not JSON", b"keep: invalid_data: "),
        strict=True,
    ):
        headers = dict(record.headers)
        assert (record.key, record.value, headers["x"]) == (b"\xff", records[offset], b"\xfe")
        assert headers["turnout-topic"] == topic.encode()
        assert headers["turnout-offset"] == b"%d" % offset
        assert reason in headers["turnout-reason"]


async def test_a_whole_cloudevent_keeps_its_attributes(tmp_path: Path, kafka: Broker) -> None:
    topic, dead_letters = await kafka.create_topic(), await kafka.create_topic()
    trigger = records_of(
        topic, group=unique("group"), start="earliest", dead_letter_topic=dead_letters
    )

    @flow(on=trigger)
    async def keep(item: Item) -> None:
        raise ValueError("never")

    told = {
        "specversion": "1.0",
        "id": "e-1",
        "source": "/shop",
        "type": "order.placed",
        "time": "2026-01-31T09:00:00+00:00",
        "subject": "7",
        "shard": "b",
        "datacontenttype": "application/json",
    }
    value = orjson.dumps({**told, "data": {"id": 7}})
    headers = [("content-type", b"application/cloudevents+json"), ("x", b"y")]
    await kafka.send(topic, [value], key=b"k", headers=headers)
    async with serving(tmp_path, kafka, keep) as process:
        await ended(process, 1)
        await eventually(lambda: _has(kafka, dead_letters, 1))
    [record] = await kafka.records(dead_letters)
    found = {name: text.decode() for name, text in record.headers}
    assert (record.key, record.value) == (b"k", b'{"id":7}')
    assert found.pop("content-type") == told.pop("datacontenttype")
    kept = {name.removeprefix("ce_"): found[name] for name in found if name.startswith("ce_")}
    assert kept == told
    assert (found["x"], found["turnout-offset"]) == ("y", "0")


@pytest.mark.parametrize("key", [b"data:;base64,A", b"data:;base64,AAAA", b"\xff"])
async def test_a_key_of_any_bytes_comes_back(tmp_path: Path, kafka: Broker, key: bytes) -> None:
    topic, dead_letters = await kafka.create_topic(), await kafka.create_topic()
    trigger = records_of(
        topic, group=unique("group"), start="earliest", dead_letter_topic=dead_letters
    )

    @flow(on=trigger)
    async def keep(item: Item) -> None: ...

    await kafka.send(topic, [b"{oops"], key=key, headers=[("x", key)])
    async with serving(tmp_path, kafka, keep) as process:
        await ended(process, 1)
        await eventually(lambda: _has(kafka, dead_letters, 1))
    [record] = await kafka.records(dead_letters)
    assert (record.key, dict(record.headers)["x"]) == (key, key)


async def test_a_record_is_in_the_dead_letter_topic_as_it_was(
    tmp_path: Path, kafka: Broker
) -> None:
    """A null is no empty value, and headers are a list with nulls, not a mapping."""
    if kafka.kind == "mesh":
        pytest.skip("this broker keeps no null header")
    topic, dead_letters = await kafka.create_topic(), await kafka.create_topic()
    trigger = records_of(
        topic, group=unique("group"), start="earliest", dead_letter_topic=dead_letters
    )

    @flow(on=trigger)
    async def keep(item: Item) -> None: ...

    headers: list[Any] = [("X", b"1"), ("x", b"2"), ("x", None), ("X", b"\xff"), ("y", b"")]
    await kafka.send(topic, [None], key=b"k", headers=headers)
    await kafka.send(topic, [b""], key=b"k")
    await kafka.send(topic, [b""], headers=[("Only-Case", b"1")])
    async with serving(tmp_path, kafka, keep) as process:
        runs = await ended(process, 3)
        await eventually(lambda: _has(kafka, dead_letters, 3))
        [stored] = await process.process.journal.event(runs[0].event_id)
    found = sorted(await kafka.records(dead_letters), key=_offset)
    assert [record.value for record in found] == [None, b"", b""]
    assert [record.key for record in found] == [b"k", b"k", None]
    kept = [
        [one for one in record.headers if not one[0].startswith("turnout-")] for record in found
    ]
    assert kept == [headers, [], [("Only-Case", b"1")]]
    assert stored.event.headers == {"x": text_of(b"\xff"), "y": ""}
    assert not stored.event.has_body


def _offset(record: ConsumerRecord) -> int:
    return int(dict(record.headers)["turnout-offset"])


async def test_an_event_an_operator_fired_is_no_record(tmp_path: Path, kafka: Broker) -> None:
    topic, dead_letters = await kafka.create_topic(), await kafka.create_topic()
    trigger = records_of(
        topic, group=unique("group"), start="earliest", dead_letter_topic=dead_letters
    )

    @flow(on=trigger)
    async def keep(item: Item) -> None:
        raise ValueError("never")

    async with serving(tmp_path, kafka, keep) as process:
        await process.process.operator.do(Fire(trigger.name, b'{"id": 1}'))
        await ended(process, 1)

        async def settled() -> bool:
            return not await process.process.journal.due_actions(0, 10)

        await eventually(settled)
    assert await kafka.ends(dead_letters) == {0: 0}


async def _has(kafka: Broker, topic: str, count: int) -> bool:
    return await kafka.ends(topic) == {0: count}
