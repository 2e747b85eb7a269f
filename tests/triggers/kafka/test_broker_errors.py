"""Errors brokers answer with, one API at a time: nothing is lost, doubled or said to be written."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiokafka import (  # type: ignore[import-untyped]  # it carries no types
    AIOKafkaConsumer,
    AIOKafkaProducer,
    TopicPartition,
)

from tests.support.brokers import unique
from tests.support.mock_kafka import MockCluster
from tests.support.running import running
from tests.support.trigger_contract import RecordingEmitter, watch
from turnout.handlers.flow import flow
from turnout.handlers.kafka import publish
from turnout.service.domain.run import RunState
from turnout.triggers.kafka import kafka

NOT_LEADER, TIMED_OUT, NOT_ENOUGH, NOT_ENOUGH_AFTER = 6, 7, 19, 20
LOADING, NO_COORDINATOR, OTHER_COORDINATOR = 14, 15, 16
ILLEGAL_GENERATION, UNKNOWN_MEMBER, REBALANCING = 22, 25, 27
TOO_LARGE, NOT_ALLOWED, OUT_OF_ORDER, FENCED = 10, 29, 45, 47
GONE = MockCluster.DISCONNECT


@pytest.fixture
def topic(mock_cluster: MockCluster) -> str:
    name = unique("topic")
    mock_cluster.create_topic(name)
    return name


async def send(cluster: MockCluster, topic: str, *numbers: int) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=cluster.bootstrap)
    await producer.start()
    try:
        for number in numbers:
            await producer.send_and_wait(topic, b"%d" % number)
    finally:
        await producer.stop()


async def committed(cluster: MockCluster, group: str, topic: str) -> int | None:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=cluster.bootstrap, group_id=group, enable_auto_commit=False
    )
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        offset: int | None = await consumer.committed(TopicPartition(topic, 0))
        return offset
    finally:
        await consumer.stop()


@pytest.mark.parametrize(
    ("api", "errors"),
    [
        (MockCluster.FETCH, [NOT_LEADER, NOT_LEADER]),
        (MockCluster.FETCH, [GONE, GONE]),
        (MockCluster.OFFSET_COMMIT, [LOADING, NO_COORDINATOR, OTHER_COORDINATOR, TIMED_OUT]),
        (MockCluster.OFFSET_COMMIT, [GONE]),
        (MockCluster.OFFSET_COMMIT, [REBALANCING]),
        (MockCluster.OFFSET_COMMIT, [NOT_ALLOWED]),
        (MockCluster.HEARTBEAT, [REBALANCING]),
        (MockCluster.HEARTBEAT, [UNKNOWN_MEMBER]),
        (MockCluster.HEARTBEAT, [ILLEGAL_GENERATION]),
        (MockCluster.HEARTBEAT, [GONE, NO_COORDINATOR]),
        (MockCluster.FIND_COORDINATOR, [NO_COORDINATOR, NO_COORDINATOR]),
    ],
)
async def test_reading_survives_what_brokers_answer(
    mock_cluster: MockCluster, topic: str, api: int, errors: list[int]
) -> None:
    trigger = kafka(topic, group=unique("group"), start="earliest", session="2s")
    emit = RecordingEmitter()
    emit.connections["kafka"] = {"bootstrap_servers": mock_cluster.bootstrap.split(",")}
    if api == MockCluster.FIND_COORDINATOR:
        mock_cluster.answer(api, *errors)
    async with watch(trigger, emit):
        await send(mock_cluster, topic, 0)
        await emit.until(lambda: len(emit.deliveries) == 1, 15)
        if api != MockCluster.FIND_COORDINATOR:
            mock_cluster.answer(api, *errors)
        for number in range(1, 11):
            await send(mock_cluster, topic, number)
        await emit.until(lambda: len(emit.deliveries) >= 11, 15)
        await emit.until(lambda: emit.is_up, 15)
    assert [event.data for event in emit.deliveries] == list(range(11))
    assert await committed(mock_cluster, trigger.group, topic) == 11


async def test_reading_follows_a_leader_and_a_coordinator_that_move(
    mock_cluster: MockCluster, topic: str
) -> None:
    trigger = kafka(topic, group=unique("group"), start="earliest", session="2s")
    emit = RecordingEmitter()
    emit.connections["kafka"] = {"bootstrap_servers": mock_cluster.bootstrap.split(",")}
    async with watch(trigger, emit):
        for number in range(9):
            mock_cluster.lead(topic, 0, 1 + number % 3)
            if number == 4:
                mock_cluster.coordinate(trigger.group, 2)
            await send(mock_cluster, topic, number)
        await emit.until(lambda: len(emit.deliveries) >= 9, 15)
    assert [event.data for event in emit.deliveries] == list(range(9))
    assert await committed(mock_cluster, trigger.group, topic) == 9


@pytest.mark.parametrize(
    ("errors", "state", "said"),
    [
        ([NOT_LEADER, NOT_LEADER], RunState.SUCCEEDED, ""),
        ([NOT_ENOUGH, NOT_ENOUGH_AFTER, TIMED_OUT], RunState.SUCCEEDED, ""),
        ([GONE, GONE], RunState.SUCCEEDED, ""),
        ([OUT_OF_ORDER], RunState.SUCCEEDED, ""),
        ([FENCED], RunState.SUCCEEDED, ""),
        ([TOO_LARGE], RunState.FAILED, "MessageSizeTooLarge"),
        ([NOT_ALLOWED], RunState.FAILED, "TopicAuthorizationFailed"),
    ],
)
async def test_publishing_retries_what_may_pass_and_fails_on_what_will_not(
    mock_cluster: MockCluster,
    topic: str,
    tmp_path: Path,
    errors: list[int],
    state: RunState,
    said: str,
) -> None:
    @flow
    async def pass_on() -> dict[str, int]:
        return await publish(topic, {"n": 1}, key="k")

    mock_cluster.answer(MockCluster.PRODUCE, *errors)
    async with running(
        tmp_path, [pass_on], kafka_bootstrap_servers=mock_cluster.bootstrap
    ) as process:
        receipt = await process.send()
        async with asyncio.timeout(15):
            run = await process.finished(receipt.runs[0])
    assert run.state is state
    if said:
        assert run.error is not None and said in run.error.message
    else:
        assert run.result == b'{"partition":0,"offset":0}', "it is there once"
