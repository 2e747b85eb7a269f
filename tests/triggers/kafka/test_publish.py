"""Records that flows publish."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import (  # type: ignore[import-untyped]  # as above
    OutOfOrderSequenceNumber,
)

from tests.support.brokers import Broker, unique
from turnout.handlers.flow import flow
from turnout.handlers.kafka import NotPublished, Producer, publish
from turnout.service.steps.context import current

from .reading import Item, ended, eventually_true, kafka_trigger, quick_rebalances, serving

__all__ = ["quick_rebalances"]  # the fixture


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
