"""Where the log of a leader epoch ends: this finds a log that was cut and has grown again.

Each record belongs to the epoch of the leader that wrote it, and epochs only rise (KIP-101,
KIP-320). After a log has lost its newest records, their epoch ends below what was read, however far
the log has grown since. The client has no such request: here it is (OffsetForLeaderEpoch, version
2). Not here: what follows from it (`positions`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]  # no types
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]  # as above
from aiokafka.protocol import types as wire  # type: ignore[import-untyped]  # as above
from aiokafka.protocol.api import (  # type: ignore[import-untyped]  # as above
    Request,
    RequestStruct,
    Response,
)

from .topic_ids import by_leader

_ANY_EPOCH = -1


async def epoch_ends(
    consumer: AIOKafkaConsumer, epochs: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int]:
    """Return where the records of these leader epochs, or earlier ones, end in each log.

    Leaves a partition out where that is unknown: its leader is being elected, the epoch is
    forgotten, or the broker is too old or forbids the request.
    """
    client = consumer._client  # its public API has no such request
    ends: dict[TopicPartition, int] = {}
    try:
        led = by_leader(client, epochs)
        for leader, partitions in led.items():
            asked = _Ask({one: epochs[one] for one in partitions})
            answer = await client.send(leader, asked)
            for topic, partition_ends in answer.topics:
                for code, number, _epoch, end in partition_ends:
                    if code == 0 and end >= 0:
                        ends[TopicPartition(topic, number)] = end
    except (KafkaError, NotImplementedError):
        return ends
    return ends


class _Answer(Response):  # type: ignore[misc]  # the client carries no types
    API_KEY = 23
    API_VERSION = 2
    SCHEMA = wire.Schema(
        ("throttle_time_ms", wire.Int32),
        (
            "topics",
            wire.Array(
                ("topic", wire.String("utf-8")),
                (
                    "partitions",
                    wire.Array(
                        ("error_code", wire.Int16),
                        ("partition", wire.Int32),
                        ("leader_epoch", wire.Int32),
                        ("end_offset", wire.Int64),
                    ),
                ),
            ),
        ),
    )


class _Question(RequestStruct):  # type: ignore[misc]  # as above
    API_KEY = 23
    API_VERSION = 2
    RESPONSE_TYPE = _Answer
    SCHEMA = wire.Schema(
        (
            "topics",
            wire.Array(
                ("topic", wire.String("utf-8")),
                (
                    "partitions",
                    wire.Array(
                        ("partition", wire.Int32),
                        ("current_leader_epoch", wire.Int32),
                        ("leader_epoch", wire.Int32),
                    ),
                ),
            ),
        ),
    )


class _Ask(Request[_Question]):  # type: ignore[misc]  # as above
    API_KEY = 23

    def __init__(self, epochs: Mapping[TopicPartition, int]) -> None:
        asked: dict[str, list[Any]] = {}
        for one, epoch in epochs.items():
            asked.setdefault(one.topic, []).append((one.partition, _ANY_EPOCH, epoch))
        self._topics = list(asked.items())

    def build(self, question: type[_Question]) -> _Question:
        return question(self._topics)
