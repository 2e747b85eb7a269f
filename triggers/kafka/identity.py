"""The ids of topics: one made anew has another id, whatever its name, offsets and records are.

Kafka gives a topic an id when it is made and never changes it (KIP-516, since 2.8), and the client
has no question for it: here is the one request that asks (Metadata, version 10). It goes to the
leaders, whose logs are what is read. Brokers that know no ids leave them empty. Not here: what
follows from an id (`ledger`).
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable, Mapping
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


async def topic_ids(
    reader: AIOKafkaConsumer, partitions: Iterable[TopicPartition]
) -> dict[TopicPartition, str]:
    """Return the id of each partition's topic, as Kafka's tools write it; "" where it has none.

    Raises `KafkaError`; a leader that is being chosen is waited for.
    """
    listed = list(partitions)
    client = reader._client  # its public face has no request for this
    while True:
        try:
            return await _asked(client, listed)
        except KafkaError as error:
            if not error.retriable:
                raise
        client.force_metadata_update()
        await asyncio.sleep(_RETRY_SECONDS)


async def _asked(client: Any, partitions: list[TopicPartition]) -> dict[TopicPartition, str]:
    led: dict[int, set[str]] = {}
    leaders = {one: client.cluster.leader_for_partition(one) for one in partitions}
    for one, leader in leaders.items():
        if leader is None or leader < 0:
            raise LeaderNotAvailableError(str(one))
        led.setdefault(leader, set()).add(one.topic)
    said = {leader: await _ids(client, leader, sorted(topics)) for leader, topics in led.items()}
    return {one: said[leader][one.topic] for one, leader in leaders.items()}


async def _ids(client: Any, leader: int, topics: list[str]) -> Mapping[str, str]:
    try:
        answer = await client.send(leader, _Ask(topics))
    except NotImplementedError:  # the broker knows older versions only
        return dict.fromkeys(topics, "")
    found = {}
    for code, name, raw, *_ in answer.topics:
        if code:
            raise for_code(code)(name)
        found[name] = base64.urlsafe_b64encode(raw).decode().rstrip("=") if raw != _NONE else ""
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
