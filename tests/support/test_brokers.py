"""The brokers tests run on: what each promises the tests that use it."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import (  # type: ignore[import-untyped]  # as above
    AIOKafkaConsumer,
    AIOKafkaProducer,
    TopicPartition,
)
from aiokafka.errors import (  # type: ignore[import-untyped]  # it carries no types
    KafkaConnectionError,
    MessageSizeTooLargeError,
    TopicAlreadyExistsError,
)

from .brokers import Broker, PrivateKafka, unique
from .mock_kafka import MockCluster


async def test_records_come_back_as_they_were_sent(kafka: Broker) -> None:
    topic = await kafka.create_topic(partitions=2)
    await kafka.send(topic, [b"a", None], key=b"k", partition=1, headers=[("h", b"1"), ("h", b"2")])
    await kafka.send(topic, [b"b"], partition=0)
    assert await kafka.ends(topic) == {0: 1, 1: 2}
    first, second, tombstone = await kafka.records(topic)
    assert (first.partition, first.value) == (0, b"b")
    assert (second.key, second.value, second.headers) == (b"k", b"a", (("h", b"1"), ("h", b"2")))
    assert tombstone.value is None


async def test_a_topic_exists_once_and_missing_topics_are_not_made(kafka: Broker) -> None:
    topic = await kafka.create_topic()
    with pytest.raises(TopicAlreadyExistsError):
        await kafka.create_topic(topic)
    if not kafka.makes_topics:
        with pytest.raises(AssertionError, match="there is no topic"):
            await kafka.ends(unique("missing"))


async def test_a_topic_made_anew_starts_at_zero(kafka: Broker) -> None:
    topic = await kafka.create_topic()
    await kafka.send(topic, [b"old", b"older"])
    await kafka.delete_topic(topic)
    await kafka.create_topic(topic)
    await kafka.send(topic, [b"new"])
    assert [record.value for record in await kafka.records(topic)] == [b"new"]


async def test_what_a_group_committed_is_seen(kafka: Broker) -> None:
    topic, group = await kafka.create_topic(partitions=2), unique("group")
    await kafka.send(topic, [b"a", b"b", b"c"], partition=0)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka.bootstrap, group_id=group, enable_auto_commit=False
    )
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        await consumer.commit({TopicPartition(topic, 0): 2})
    finally:
        await consumer.stop()
    assert await kafka.committed(group, topic) == {0: 2}


async def test_a_password_is_asked_for(kafka: Broker) -> None:
    login = kafka.sasl
    if login is None:
        pytest.skip(f"{kafka.kind} does not authenticate")
    topic = await kafka.create_topic()
    for password in (login.password, "wrong"):
        producer = AIOKafkaProducer(
            bootstrap_servers=login.bootstrap,
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="PLAIN",
            sasl_plain_username=login.user,
            sasl_plain_password=password,
        )
        try:
            await producer.start()
            await producer.send_and_wait(topic, b"known")
        except KafkaConnectionError:
            assert password == "wrong"
        else:
            assert password == login.password
        finally:
            await producer.stop()
    assert len(await kafka.records(topic)) == 1


@pytest.mark.full
@pytest.mark.timeout(60)
async def test_a_killed_broker_comes_back_with_its_data(private_kafka: PrivateKafka) -> None:
    async with private_kafka("broker.session.timeout.ms=1000") as broker:
        topic = await broker.create_topic()
        await broker.send(topic, [b"kept"])
        broker.kill()
        assert not broker.alive
        with pytest.raises(KafkaConnectionError):
            await broker.ends(topic)
        await broker.start()
        if broker.keeps_data:
            assert [record.value for record in await broker.records(topic)] == [b"kept"]
        else:
            assert await broker.create_topic(topic) == topic
        await broker.stop()
        assert not broker.alive


async def test_a_cut_network_heals_and_a_slow_one_is_slow(proxied_kafka: Broker) -> None:
    broker = proxied_kafka
    assert broker.proxy is not None
    topic = await broker.create_topic()
    async with broker.producer(request_timeout_ms=1_000) as producer:
        await producer.send_and_wait(topic, b"before")
        broker.proxy.cut()
        unsent = await producer.send(topic, b"during")
        done, _ = await asyncio.wait([unsent], timeout=0.3)
        assert not done
        await broker.proxy.heal()
        await unsent
    loop = asyncio.get_running_loop()
    broker.proxy.delay_seconds = 0.2
    started = loop.time()
    await broker.ends(topic)
    assert loop.time() - started > 0.4
    broker.proxy.delay_seconds = 0
    assert [record.value for record in await broker.records(topic)] == [b"before", b"during"]


async def test_the_mock_cluster_answers_with_the_errors_asked_for(
    mock_cluster: MockCluster,
) -> None:
    mock_cluster.create_topic("t", 2)
    producer = AIOKafkaProducer(bootstrap_servers=mock_cluster.bootstrap)
    await producer.start()
    try:
        mock_cluster.answer(MockCluster.PRODUCE, MessageSizeTooLargeError.errno)
        with pytest.raises(MessageSizeTooLargeError):
            await producer.send_and_wait("t", b"x")
        mock_cluster.answer(MockCluster.PRODUCE, MockCluster.DISCONNECT)
        mock_cluster.lead("t", 0, 2)
        await producer.send_and_wait("t", b"x", partition=0)
    finally:
        await producer.stop()
