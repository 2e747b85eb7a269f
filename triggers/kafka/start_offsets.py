"""Where a consumer reads on in partitions it was just given: decided, stored, told to Kafka.

The decision itself is `ledger.settle`; here its facts are gathered, and its outcome is in the
journal before the first fetch. What was not as expected is an alarm in the log, once it is stored:
a journal that refuses is tried again and again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]  # no types

from turnout.service.domain.errors import TriggerError
from turnout.service.domain.trigger import Emitter
from turnout.service.telemetry.logs import get_logger

from . import broker
from .broker import Met
from .leaders import Leaders
from .positions import Bounds, Ledger, Place, Settled, Topic, is_anew, read_topic, settle

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


@dataclass(slots=True)
class _Settling:
    """What placing comes to: the positions to store, and what to say once they are."""

    fresh: dict[str, str] = field(default_factory=dict)
    alarms: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


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
        self._leaders = Leaders(emit, ledger)

    async def place(
        self, consumer: AIOKafkaConsumer, partitions: Iterable[TopicPartition]
    ) -> Limits:
        """Store where to read on; it is in the ledger on return."""
        async with self._ledger.lock:
            stored = await self._emit.positions()
            self._ledger.load(stored)
            found = await self._bounds(consumer, partitions)
            settling = await self._settle(consumer, stored, found)
            if settling.fresh:
                await self._emit([], settling.fresh)
                self._ledger.load(settling.fresh)
        for alarm, told in settling.alarms:
            log.error(alarm, trigger=self._trigger.name, **told)
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
        """Ask for bounds; that a log is not the one that was read is believed when it stays so.

        A broker that has just become leader may be short of the newest records for a moment, and
        a topic made anew is read again from its start: not on one word.
        """
        for _ in range(_SECOND_LOOKS):
            found = await self._bounds_now(consumer, partitions)
            places = {one: self._ledger.places.get(broker.key_of(one)) for one in found}
            if not any(at is not None and is_anew(at, found[one]) for one, at in places.items()):
                return found
            await asyncio.sleep(1)
        return await self._bounds_now(consumer, partitions)

    async def _bounds_now(
        self, consumer: AIOKafkaConsumer, partitions: Iterable[TopicPartition]
    ) -> dict[TopicPartition, Bounds]:
        found = await broker.bounds(consumer, partitions)
        read_to = {one: self._read_to(one, it) for one, it in found.items()}
        short = {one: at for one, at in read_to.items() if at > found[one].end}
        if short:
            reached = await broker.reaching(consumer, short)
            found |= {one: replace(found[one], end=at) for one, at in reached.items()}
        cuts = await self._leaders.cuts(consumer, [(one, it.topic) for one, it in found.items()])
        return found | {one: replace(found[one], cut=cut) for one, cut in cuts.items()}

    def _read_to(self, partition: TopicPartition, bounds: Bounds) -> int:
        """Return how far a partition is read, here or in the group."""
        place = self._ledger.places.get(broker.key_of(partition))
        return max(0 if place is None else place.next, bounds.committed or 0)

    async def _settle(
        self, consumer: AIOKafkaConsumer, stored: Mapping[str, str], found: Limits
    ) -> _Settling:
        """Return the positions to store before the first fetch, and what was not as expected."""
        topics = {partition.topic: limits.topic for partition, limits in found.items()}
        fresh = self._topics_met(stored, topics)
        firsts = await self._firsts(consumer, {**stored, **fresh}, found)
        settling = _Settling(fresh)
        for partition, limits in found.items():
            key = broker.key_of(partition)
            before = self._ledger.places.get(key)
            settled = settle(before, limits, firsts.get(partition, limits.first))
            if settled.place != before:
                fresh[key] = settled.place.text()
            if settled.alarm is not None:
                settling.alarms.append((settled.alarm, _told(key, before, limits, settled)))
            if limits.cut is not None:
                topic = read_topic(fresh.get(partition.topic) or stored[partition.topic])
                assert topic is not None  # it told of the leader that was cut off
                epoch, _ = topic.leaders[partition.partition]
                leaders = {**topic.leaders, partition.partition: (epoch, limits.cut)}
                fresh[partition.topic] = replace(topic, leaders=leaders).text()
        return settling

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
            elif its_id and not known.id:
                fresh[topic] = replace(known, id=its_id).text()
            elif its_id and known.id != its_id:
                fresh[topic] = Topic(self._cluster, 0, its_id).text()
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
        return {partition: limits.readable for partition, limits in old.items()}


def _told(key: str, before: Place | None, limits: Bounds, settled: Settled) -> dict[str, Any]:
    """Return what an alarm tells of a partition."""
    return {
        "partition": key,
        "ledger": None if before is None else before.next,
        "first": limits.first,
        "end": limits.end,
        "reads_from": settled.place.next,
        "epoch": settled.place.epoch,
        "lost": settled.lost,
        "topic_id": limits.topic,
    }
