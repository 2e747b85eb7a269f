"""Topics with transactions: what is open, aborted or a mark is no record, and read all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiokafka import (  # type: ignore[import-untyped]  # it carries no types
    AIOKafkaProducer,
    TopicPartition,
)
from aiokafka.admin import RecordsToDelete  # type: ignore[import-untyped]  # as above

from tests.support.brokers import Broker, unique
from tests.support.trigger_contract import RecordingEmitter, watch
from turnout.service.domain.trigger import Seek
from turnout.triggers.kafka.positions import read_position

from .reading import commit, emitter_for
from .test_topic_recreated import Alarms, alarms, delivered, reading, send

__all__ = ["alarms"]  # the fixture


@pytest.fixture(autouse=True)
def _with_transactions(kafka: Broker) -> None:
    if kafka.kind == "mesh":
        pytest.skip("this broker has no transactions")


@asynccontextmanager
async def transaction(kafka: Broker, topic: str, count: int) -> AsyncIterator[AIOKafkaProducer]:
    """Write records in a transaction that is open inside; it ends there, or is aborted here."""
    async with kafka.producer(transactional_id=unique("tx")) as producer:
        await producer.begin_transaction()
        for number in range(count):
            await producer.send_and_wait(topic, b"%d" % (1000 + number), partition=0)
        try:
            yield producer
        finally:
            if producer._txn_manager.is_in_transaction():
                await producer.abort_transaction()


async def aborted(kafka: Broker, topic: str, count: int) -> None:
    async with transaction(kafka, topic, count):
        pass


async def test_a_group_that_is_past_an_open_transaction_goes_on_where_it_is(
    kafka: Broker, alarms: Alarms
) -> None:
    """Another consumer of the group read what is not committed, and the transaction is open yet."""
    topic = await kafka.create_topic()
    trigger, emit = reading(topic), emitter_for(kafka)
    await send(kafka, topic, 0, 10)
    async with transaction(kafka, topic, 3) as producer:
        await send(kafka, topic, 10, 11)
        await commit(kafka, trigger.group, topic, 14)
        async with watch(trigger, emit):
            await send(kafka, topic, 11, 12)
            await emit.until(lambda: emit.lags.get(f"{topic}/0") == 0)
            assert emit.deliveries == []
            await producer.commit_transaction()
            await emit.stored(1)
    assert [event.data for event in emit.deliveries] == [11]
    assert alarms() == []
    assert (await kafka.committed(trigger.group, topic))[0] >= 15


async def test_a_restart_under_an_open_transaction_repeats_nothing(
    kafka: Broker, alarms: Alarms
) -> None:
    topic = await kafka.create_topic()
    trigger, emit = reading(topic), emitter_for(kafka)
    await send(kafka, topic, 0, 4)
    async with watch(trigger, emit):
        await emit.stored(4)
    async with transaction(kafka, topic, 3) as producer:
        for _ in range(2):
            async with watch(trigger, emit):
                await emit.until(lambda: f"{topic}/0" in emit.lags)
        plan = await trigger.plan(
            Seek(to="6"), emit.stored_positions, {"bootstrap_servers": [kafka.bootstrap]}
        )
        assert "from 4 to 6: 2 records will never be read" in plan.sentences[0]
        await producer.commit_transaction()
    async with watch(trigger, emit):
        await emit.stored(7)
    assert delivered(emit) == [("1", "0", str(n)) for n in range(7)]
    assert alarms() == []


async def test_lag_and_the_commit_reach_the_end_of_a_topic_with_transactions(
    kafka: Broker, alarms: Alarms
) -> None:
    topic = await kafka.create_topic(partitions=2)
    trigger, emit = reading(topic), emitter_for(kafka)
    await send(kafka, topic, 0, 6)
    await aborted(kafka, topic, 7)
    async with transaction(kafka, topic, 2) as producer:
        await producer.commit_transaction()
    async with watch(trigger, emit):
        await emit.stored(8)
        await aborted(kafka, topic, 300)
        end = 6 + 7 + 2 + 300 + 3  # and a mark behind each transaction
        await emit.until(lambda: next_of(emit, topic) == end)
        await emit.until(lambda: emit.lags == {f"{topic}/0": 0, f"{topic}/1": 0})
    assert (await kafka.committed(trigger.group, topic))[0] == end
    async with kafka.admin() as admin:  # retention takes what was aborted
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(end)})
    await send(kafka, topic, 6, 7)
    async with watch(trigger, emit):
        await emit.stored(9)
    assert len(emit.deliveries) == 9
    assert alarms() == []


def next_of(emit: RecordingEmitter, topic: str) -> int:
    position = read_position(emit.stored_positions[f"{topic}/0"])
    assert position is not None
    return position.next


async def test_nothing_is_skipped_where_transactions_and_records_alternate(
    kafka: Broker, alarms: Alarms
) -> None:
    topic = await kafka.create_topic()
    trigger, emit = reading(topic), emitter_for(kafka)
    expected = []
    async with watch(trigger, emit):
        for turn in range(8):
            await send(kafka, topic, turn * 10, turn * 10 + 3)
            expected += [*range(turn * 10, turn * 10 + 3)]
            if turn % 2:
                await aborted(kafka, topic, 5)
            else:
                async with transaction(kafka, topic, 2) as producer:
                    await producer.commit_transaction()
                expected += [1000, 1001]
        await emit.stored(len(expected))
        await emit.until(lambda: emit.lags.get(f"{topic}/0") == 0)
    assert [event.data for event in emit.deliveries] == expected
    assert alarms() == []
