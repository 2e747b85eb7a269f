"""The ids of topics: a recreated topic has another id, even with the same name and offsets.

Kafka gives a topic an id when it is created and never changes it (KIP-516, since 2.8). The client
has no request for it: here it is (Metadata, version 10). It is sent to the leaders, whose logs are
read. Brokers that know no ids leave them empty. The same answer has the leader epoch of each
partition. Not here: what follows from an id (`positions`).
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]  # no types
from aiokafka.errors import (  # type: ignore[import-untyped]  # as above
    KafkaError,
    LeaderNotAvailableError,
    for_code,
)
from aiokafka.protocol import types as wire  # type: ignore[import-untyped]  # as above
from aiokafka.protocol.abstract import AbstractType  # type: ignore[import-untyped]  # as above
from aiokafka.protocol.api import (  # type: ignore[import-untyped]  # as above
    Request,
    RequestStruct,
    Response,
)

_RETRY_SECONDS = 0.1

_NONE = bytes(16)


@dataclass(frozen=True, slots=True)
class Identity:
    """What the leader says of a partition: its topic id ("" if unknown) and leader epoch."""

    topic: str = ""
    leader_epoch: int = -1


async def ask_identities(
    consumer: AIOKafkaConsumer, partitions: Iterable[TopicPartition]
) -> dict[TopicPartition, Identity]:
    """Return the identity of each partition, with ids written as Kafka's tools do.

    Waits for a leader that is being elected. Raises `KafkaError`.
    """
    listed = list(partitions)
    client = consumer._client  # its public API has no such request
    while True:
        try:
            return await _ask_leaders(client, listed)
        except KafkaError as error:
            if not error.retriable:
                raise
        client.force_metadata_update()
        await asyncio.sleep(_RETRY_SECONDS)


def by_leader(client: Any, partitions: Iterable[TopicPartition]) -> dict[int, list[TopicPartition]]:
    """Return partitions by the broker that leads them; raises for one without a leader."""
    led: dict[int, list[TopicPartition]] = {}
    for one in partitions:
        leader = client.cluster.leader_for_partition(one)
        if leader is None or leader < 0:
            raise LeaderNotAvailableError(str(one))
        led.setdefault(leader, []).append(one)
    return led


async def _ask_leaders(
    client: Any, partitions: list[TopicPartition]
) -> dict[TopicPartition, Identity]:
    found: dict[TopicPartition, Identity] = {}
    for leader, its in by_leader(client, partitions).items():
        answers = await _ask_leader(client, leader, sorted({one.topic for one in its}))
        found |= {one: answers.get(one, Identity()) for one in its}
    return found


async def _ask_leader(
    client: Any, leader: int, topics: list[str]
) -> Mapping[TopicPartition, Identity]:
    try:
        answer = await client.send(leader, _Ask(topics))
    except NotImplementedError:  # the broker is older
        return {}
    found = {}
    for code, name, raw, _internal, partitions, *_ in answer.topics:
        if code:
            raise for_code(code)(name)
        topic = base64.urlsafe_b64encode(raw).decode().rstrip("=") if raw != _NONE else ""
        for _code, number, _leader, leader_epoch, *_rest in partitions:
            found[TopicPartition(name, number)] = Identity(topic, leader_epoch)
    return found


class _Uuid(AbstractType):  # type: ignore[misc]  # the client carries no types
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


_TAGS = ("tags", wire.TaggedFields)
_NAME = wire.CompactString("utf-8")
_NUMBERS = wire.CompactArray(wire.Int32)


class _Answer(Response):  # type: ignore[misc]  # as above
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = wire.Schema(
        ("throttle_time_ms", wire.Int32),
        (
            "brokers",
            wire.CompactArray(
                ("node_id", wire.Int32),
                ("host", _NAME),
                ("port", wire.Int32),
                ("rack", _NAME),
                _TAGS,
            ),
        ),
        ("cluster_id", _NAME),
        ("controller_id", wire.Int32),
        (
            "topics",
            wire.CompactArray(
                ("error_code", wire.Int16),
                ("topic", _NAME),
                ("topic_id", _Uuid),
                ("is_internal", wire.Boolean),
                (
                    "partitions",
                    wire.CompactArray(
                        ("error_code", wire.Int16),
                        ("partition", wire.Int32),
                        ("leader", wire.Int32),
                        ("leader_epoch", wire.Int32),
                        ("replicas", _NUMBERS),
                        ("isr", _NUMBERS),
                        ("offline_replicas", _NUMBERS),
                        _TAGS,
                    ),
                ),
                ("authorized_operations", wire.Int32),
                _TAGS,
            ),
        ),
        ("cluster_authorized_operations", wire.Int32),
        _TAGS,
    )


class _Question(RequestStruct):  # type: ignore[misc]  # as above
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _Answer
    SCHEMA = wire.Schema(
        ("topics", wire.CompactArray(("topic_id", _Uuid), ("topic", _NAME), _TAGS)),
        ("allow_auto_topic_creation", wire.Boolean),
        ("include_cluster_authorized_operations", wire.Boolean),
        ("include_topic_authorized_operations", wire.Boolean),
        _TAGS,
    )


class _Ask(Request[_Question]):  # type: ignore[misc]  # as above
    API_KEY = 3

    def __init__(self, topics: list[str]) -> None:
        self._topics: list[Any] = [(_NONE, name, {}) for name in topics]

    def build(self, question: type[_Question]) -> _Question:
        return question(self._topics, False, False, False, {})
