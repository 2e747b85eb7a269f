"""What is asked of the broker about partitions, each call bounded, each error a `TriggerError`.

Not here: what the offsets mean (`positions`), and reading (`consumer`).
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable, Mapping
from datetime import datetime

from aiokafka import (  # type: ignore[import-untyped]  # it carries no types
    AIOKafkaConsumer,
    TopicPartition,
)
from aiokafka.protocol.fetch import FetchRequest  # type: ignore[import-untyped]  # as above

from .client import ANSWER_SECONDS, as_trigger_error
from .commit_metadata import with_committed
from .leader_epochs import epoch_ends
from .positions import Bounds, Position
from .topic_ids import Identity, ask_identities, by_leader

_READ_UNCOMMITTED = 0


async def bounds(
    consumer: AIOKafkaConsumer, partitions: Iterable[TopicPartition]
) -> dict[TopicPartition, Bounds]:
    """Return topic id, first offset, end and committed offset of the group for each partition."""
    listed = list(partitions)
    with as_trigger_error("cannot read offsets"):
        async with asyncio.timeout(ANSWER_SECONDS):
            # First: if the topic is recreated right now, the offsets below are the new topic's with
            # the old id. The next check notices that; the reverse would stay unnoticed.
            its = await ask_identities(consumer, listed)
            first = await consumer.beginning_offsets(listed)
            stable = await consumer.end_offsets(listed)
            end = await _log_ends(consumer, listed)
            coordinator = consumer._coordinator  # `committed` asks for one partition at a time
            committed = await coordinator.fetch_committed_offsets(listed)
            led = await epoch_ends(consumer, {one: it.leader_epoch for one, it in its.items()})
    return {
        one: with_committed(
            Bounds(
                first[one],
                end[one],
                None,
                its[one].topic,
                stable=stable[one],
                # If another leader was elected meanwhile, its records may be below the end already.
                leader_epoch=its[one].leader_epoch if led.get(one, -1) >= end[one] else -1,
            ),
            committed.get(one),
        )
        for one in listed
    }


async def cuts(
    consumer: AIOKafkaConsumer, positions: Mapping[TopicPartition, Position]
) -> dict[TopicPartition, int]:
    """Return where logs end that were cut below a position and then extended by another leader."""
    with as_trigger_error("cannot read leader epochs"):
        async with asyncio.timeout(ANSWER_SECONDS):
            epochs = {one: at.leader_epoch for one, at in positions.items() if at.leader_epoch >= 0}
            ends = await epoch_ends(consumer, epochs) if epochs else {}
    return {one: end for one, end in ends.items() if end < positions[one].next}


async def identities(
    consumer: AIOKafkaConsumer, partitions: Iterable[TopicPartition]
) -> dict[TopicPartition, Identity]:
    """Return the identity of each partition: its topic id and leader epoch."""
    with as_trigger_error("Kafka does not answer"):
        async with asyncio.timeout(ANSWER_SECONDS / 3):
            return await ask_identities(consumer, partitions)


async def ends(
    consumer: AIOKafkaConsumer, read_to: Mapping[TopicPartition, int]
) -> dict[TopicPartition, tuple[int, int]]:
    """Return the end of what can be read of each partition, and the end of its log.

    The end of the log is asked for only where more was read than can be read now.
    """
    with as_trigger_error("Kafka does not answer"):
        async with asyncio.timeout(ANSWER_SECONDS / 3):
            stable = await consumer.end_offsets(list(read_to))
            beyond = [one for one, end in stable.items() if read_to[one] > end]
            log_ends = await _log_ends(consumer, beyond) if beyond else {}
    found = {one: (end, log_ends.get(one, end)) for one, end in stable.items()}
    short = {one: read_to[one] for one, (_, end) in found.items() if read_to[one] > end}
    reached = await reaching(consumer, short) if short else {}
    return {one: (end, reached.get(one, log_end)) for one, (end, log_end) in found.items()}


async def reaching(
    consumer: AIOKafkaConsumer, offsets: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int]:
    """Return the real ends of logs that reach these offsets after all.

    Some brokers report the beginning of the last batch as the end of a log. So the offset itself is
    fetched: to take that for a cut would run records again.
    """
    client = consumer._client  # its public API cannot look at one offset
    found: dict[TopicPartition, int] = {}
    with as_trigger_error("Kafka does not answer"):
        async with asyncio.timeout(ANSWER_SECONDS / 3):
            for leader, partitions in by_leader(client, offsets).items():
                asked = [(one.topic, [(one.partition, offsets[one], 1)]) for one in partitions]
                answer = await client.send(leader, FetchRequest(1, 1, 1, _READ_UNCOMMITTED, asked))
                for topic, fetched in answer.topics:
                    for number, code, end, *_ in fetched:
                        one = TopicPartition(topic, number)
                        if code == 0 and end >= offsets[one]:
                            found[one] = end
    return found


async def _log_ends(
    consumer: AIOKafkaConsumer, partitions: list[TopicPartition]
) -> dict[TopicPartition, int]:
    """Return the ends of logs, also behind an open transaction."""
    # A consumer of committed records gets the end of those; ask as one that reads all.
    asking = copy.copy(consumer._fetcher)
    asking._isolation_level = _READ_UNCOMMITTED
    found: dict[TopicPartition, int] = await asking.end_offsets(
        partitions, consumer._request_timeout_ms
    )
    return found


async def offsets_at(
    consumer: AIOKafkaConsumer, instant: datetime, limits: Mapping[TopicPartition, Bounds]
) -> dict[TopicPartition, int]:
    """Return the first offset of each partition at or after `instant`; the end if there is none."""
    stamp = max(int(instant.timestamp() * 1000), 0)  # -1 and -2 have other meanings in Kafka
    with as_trigger_error("cannot look offsets up by time"):
        async with asyncio.timeout(ANSWER_SECONDS):
            found = await consumer.offsets_for_times(dict.fromkeys(limits, stamp))
    return {
        one: limit.readable if found.get(one) is None else found[one].offset
        for one, limit in limits.items()
    }
