"""Where the log of a leader epoch ends: how a log that was cut and written on since is told.

Each record is of the epoch of the leader that took it, and epochs only rise (KIP-101, KIP-320). A
log that lost its newest records ends the epoch they were of earlier than what was read of it,
however far it has grown again. The client has no question for it: here is the one request that
asks (OffsetForLeaderEpoch, version 2). Not here: what follows from it (`ledger`).
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

from .topic_ids import FETCHING, by_leader

_ANY_EPOCH = -1


async def epoch_ends(
    reader: AIOKafkaConsumer, epochs: Mapping[TopicPartition, int], over: Any = FETCHING
) -> dict[TopicPartition, int]:
    """Return behind which offset the log has no record of these leader epochs or earlier ones.

    A partition is left out where that is not known: its leader is being chosen, the epoch is
    forgotten, the broker is too old or does not allow the question.
    """
    client = reader._client  # its public face has no request for this
    ends: dict[TopicPartition, int] = {}
    try:
        led = by_leader(client, epochs)
        for leader, partitions in led.items():
            asked = _Ask({one: epochs[one] for one in partitions})
            answer = await client.send(leader, asked, group=over)
            for topic, said in answer.topics:
                for code, number, _epoch, end in said:
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
