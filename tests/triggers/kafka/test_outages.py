"""Topics that are missing, journals that refuse, members that join, brokers that are away."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import (  # type: ignore[import-untyped]  # it carries no types
    AIOKafkaAdminClient,
)

from tests.support.brokers import Broker, PrivateKafka, unique
from tests.support.trigger_contract import (
    RecordingEmitter,
    RecordingSession,
    watch,
)
from turnout.handlers.flow import flow
from turnout.service.domain.errors import JournalFull, PositionsMoved
from turnout.service.settings import Settings
from turnout.triggers.kafka import KafkaTrigger, pause

from .reading import (
    Item,
    emitter_for,
    ended,
    eventually_true,
    kafka_trigger,
    quick_checks,
    quick_heartbeats,
    quick_rebalances,
    serving,
    watching,
)

__all__ = ["quick_checks", "quick_heartbeats", "quick_rebalances"]  # the fixtures


# ---------------------------------------------------------------- on the real journal


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
    kafka: Broker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pause, "_SECONDS", (0.2, 0.8))
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
    kafka: Broker, quick_heartbeats: None
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


async def test_members_with_one_journal_never_emit_a_record_twice(
    kafka: Broker, quick_heartbeats: None
) -> None:
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


async def test_a_cancel_that_the_client_swallows_while_it_closes_is_not_lost(
    kafka: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = await kafka.create_topic()
    trigger = kafka_trigger(topic, group=unique("group"))
    real = AIOKafkaAdminClient.close

    async def close(admin: AIOKafkaAdminClient) -> None:
        asyncio.get_running_loop().call_soon(trying.cancel)  # while it waits for its own task
        await real(admin)

    monkeypatch.setattr(AIOKafkaAdminClient, "close", close)
    trying = asyncio.get_running_loop().create_task(trigger.run(emitter_for(kafka)))
    await asyncio.wait([trying], timeout=5)
    assert trying.cancelled()


async def test_brokers_that_go_away_show_and_come_back(
    proxied_kafka: Broker, quick_checks: None
) -> None:
    broker = proxied_kafka
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
