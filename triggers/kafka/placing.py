"""Where a consumer reads on in partitions it was just given: decided, stored, told to Kafka.

The decision itself is `ledger.settle`; here its facts are gathered, and its outcome is in the
journal before the first fetch. What was not as expected is an alarm in the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]  # no types

from turnout.service.errors import TriggerError
from turnout.service.logs import get_logger
from turnout.service.trigger import Emitter

from . import broker
from .broker import Met
from .ledger import Bounds, Ledger, Place, Topic, is_anew, read_topic, settle

if TYPE_CHECKING:
    from . import KafkaTrigger

log = get_logger("turnout.triggers")

_SECOND_LOOKS = 2

Limits = Mapping[TopicPartition, Bounds]


_ALL = "*"
"""Where a pattern keeps its first sight of a cluster, which may be of no topic at all."""


async def keep_first_sight(trigger: KafkaTrigger, emit: Emitter, met: Met) -> None:
    """Store what there was of the topics when the trigger first saw them, once and for all.

    That is what `start=` speaks of. What comes later (a topic that was waited for, one that a
    pattern finds, a partition) is read from its first record.
    """
    if await emit.positions():
        return
    seen = {topic: count for topic, count in met.topics.items() if trigger.reads(topic)}
    if trigger.pattern is not None:
        seen[_ALL] = 0
    await emit([], {topic: Topic(met.cluster, count).text() for topic, count in seen.items()})


class Placing:
    """Places the partitions of one consumer."""

    def __init__(
        self,
        trigger: KafkaTrigger,
        emit: Emitter,
        ledger: Ledger,
        cluster: str,
    ) -> None:
        self._trigger = trigger
        self._emit = emit
        self._ledger = ledger
        self._cluster = cluster

    async def place(
        self, consumer: AIOKafkaConsumer, partitions: Iterable[TopicPartition]
    ) -> Limits:
        """Store where to read on; it is in the ledger on return."""
        async with self._ledger.lock:
            stored = await self._emit.positions()
            self._ledger.load(stored)
            found = await self._bounds(consumer, partitions)
            fresh = await self._settle(consumer, stored, found)
            if fresh:
                await self._emit([], fresh)
                self._ledger.load(fresh)
        return found

    def placed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, Place]:
        """Return where each of them is read on."""
        return {one: self._ledger.places[broker.key_of(one)] for one in partitions}

    async def told(self, places: Mapping[TopicPartition, Place]) -> None:
        """Take down that Kafka was told: it has forgotten an offset above a sought place."""
        async with self._ledger.lock:
            settled = {
                broker.key_of(one): replace(at, sought=False)
                for one, at in places.items()
                # Another member of this process may have it meanwhile, and be past it.
                if at.sought and self._ledger.places[broker.key_of(one)] == at
            }
            if settled:
                await self._emit([], {key: place.text() for key, place in settled.items()})
                self._ledger.places |= settled

    async def _bounds(
        self, consumer: AIOKafkaConsumer, partitions: Iterable[TopicPartition]
    ) -> dict[TopicPartition, Bounds]:
        """Ask for bounds; that a topic is made anew is believed only when it stays so.

        A broker that has just become leader may be short of the newest records for a moment, and
        a topic made anew is read again from its start: not on one word.
        """
        for _ in range(_SECOND_LOOKS):
            found = await broker.bounds(consumer, partitions)
            places = {one: self._ledger.places.get(broker.key_of(one)) for one in found}
            if not any(at is not None and is_anew(at, found[one]) for one, at in places.items()):
                return found
            await asyncio.sleep(1)
        return await broker.bounds(consumer, partitions)

    async def _settle(
        self, consumer: AIOKafkaConsumer, stored: Mapping[str, str], found: Limits
    ) -> dict[str, str]:
        """Return the positions to store before the first fetch; logs what was not as expected."""
        topics = {partition.topic: limits.topic for partition, limits in found.items()}
        fresh = self._topics_met(stored, topics)
        firsts = await self._firsts(consumer, {**stored, **fresh}, found)
        for partition, limits in found.items():
            key = broker.key_of(partition)
            before = self._ledger.places.get(key)
            settled = settle(before, limits, firsts.get(partition, limits.first))
            if settled.place != before:
                fresh[key] = settled.place.text()
            if settled.alarm is not None:
                log.error(
                    settled.alarm,
                    trigger=self._trigger.name,
                    partition=key,
                    ledger=None if before is None else before.next,
                    first=limits.first,
                    end=limits.end,
                    reads_from=settled.place.next,
                    epoch=settled.place.epoch,
                    lost=settled.lost,
                    topic_id=limits.topic,
                )
        return fresh

    def _topics_met(self, stored: Mapping[str, str], topics: Mapping[str, str]) -> dict[str, str]:
        """Return what to store of topics (ids by name) that are new; refuses another cluster's."""
        fresh: dict[str, str] = {}
        for topic, its_id in topics.items():
            known = read_topic(stored.get(topic))
            if known is None:
                fresh[topic] = Topic(self._cluster, 0, its_id).text()
            elif known.cluster != self._cluster:
                raise TriggerError(
                    f"the positions of topic {topic} are of cluster {known.cluster}, and this is "
                    f"{self._cluster}: say where to read on with "
                    f"`turnout trigger seek {self._trigger.name!r} --to start|end --rerun`"
                )
            elif its_id and known.id != its_id:
                count = 0 if known.id else known.partitions
                fresh[topic] = Topic(self._cluster, count, its_id).text()
        return fresh

    async def _firsts(
        self, consumer: AIOKafkaConsumer, stored: Mapping[str, str], found: Limits
    ) -> dict[TopicPartition, int]:
        """Return where `start=` puts partitions without a place; new ones begin at their start."""
        old = {}
        for partition, limits in found.items():
            topic = read_topic(stored.get(partition.topic))
            if topic is not None and partition.partition < topic.partitions:
                old[partition] = limits
        start = self._trigger.start
        if start == "earliest":
            return {}
        if isinstance(start, datetime):
            unknown = {at: it for at, it in old.items() if broker.key_of(at) not in stored}
            return await broker.offsets_at(consumer, start, unknown) if unknown else {}
        return {partition: limits.end for partition, limits in old.items()}
