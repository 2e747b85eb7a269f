"""The Kafka trigger on a real broker: what it promises, record by record."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from aiokafka import (  # type: ignore[import-untyped]  # it carries no types
    AIOKafkaConsumer,
    TopicPartition,
)

from tests.brokers import Broker, unique
from tests.trigger_contract import RecordingEmitter, TriggerCase, TriggerContract, watch
from turnout.triggers.kafka import kafka as kafka_trigger


class KafkaCase:
    keeps_input = True
    ledger_guards = True

    def __init__(self, broker: Broker, topic: str) -> None:
        self.broker = broker
        self.topic = topic
        self.trigger = kafka_trigger(topic, group=unique("group"), start="earliest", session="6s")
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
        self.emit.rewind()
        await commit(self.broker, self.trigger.group, self.topic, 0)

    def acknowledged(self) -> int:
        place = self.emit.stored_positions.get(f"{self.topic}/0")
        return 0 if place is None else int(orjson.loads(place)["next"])


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
