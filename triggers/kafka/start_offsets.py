"""Where a consumer starts in newly assigned partitions: chosen, stored, and committed to Kafka.

`positions.choose_start` decides; this module gathers the facts and stores the outcome before the
first fetch. Anything unexpected is logged as an alarm, only after it is stored: a journal that
refuses is asked again and again.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]  # no types

from turnout.service.domain.errors import TriggerError
from turnout.service.domain.trigger import Emitter
from turnout.service.telemetry.logs import get_logger

from . import broker
from .cluster import ClusterInfo
from .positions import (
    MEMBER,
    READS_AGAIN,
    Bounds,
    KnownTopic,
    Position,
    Positions,
    Start,
    choose_start,
    is_different_log,
    key_of,
    read_known_topic,
)

if TYPE_CHECKING:
    from . import KafkaTrigger

log = get_logger("turnout.triggers")

_SECOND_LOOKS = 2
_LOOK_SECONDS = 1.0
_MEMBER_BYTES = 6

Limits = Mapping[TopicPartition, Bounds]


_ALL = "*"
"""The position in which a pattern stores its first sight of a cluster without matching topics."""


async def store_initial_topics(trigger: KafkaTrigger, emit: Emitter, info: ClusterInfo) -> None:
    """Store which topics and partitions existed when the trigger first looked, once and for all.

    `start=` applies to those. Whatever comes later (a topic the trigger waited for, one that a
    pattern finds, a partition) is read from its first record. Also stores the word for this journal
    in what it commits.
    """
    stored = await emit.positions()
    news = {} if MEMBER in stored else {MEMBER: secrets.token_hex(_MEMBER_BYTES)}
    if not stored:
        seen = {topic: count for topic, count in info.topics.items() if trigger.reads(topic)}
        if trigger.pattern is not None:
            seen[_ALL] = 0
        news |= {topic: KnownTopic(info.cluster, count).text() for topic, count in seen.items()}
    if news:
        await emit([], news)


@dataclass(frozen=True, slots=True)
class _Alarm:
    """A partition whose log is not as it was left."""

    partition: str
    stored: Position | None
    limits: Bounds
    start: Start

    def log(self, trigger: str) -> None:
        """Log what was stored, what is there now, and where reading goes on."""
        if self.start.alarm == READS_AGAIN:
            log.warning(
                "kafka.reads_again",
                trigger=trigger,
                partition=self.partition,
                reads_from=self.start.position.next,
                committed=self.limits.committed,
            )
            return
        log.error(
            self.start.alarm or "",
            trigger=trigger,
            partition=self.partition,
            position=None if self.stored is None else self.stored.next,
            first=self.limits.first,
            end=self.limits.end,
            reads_from=self.start.position.next,
            epoch=self.start.position.epoch,
            lost=self.start.lost,
            topic_id=self.limits.topic,
        )


@dataclass(slots=True)
class _StartPlan:
    """The positions to store, and the alarms to log once they are stored."""

    fresh: dict[str, str] = field(default_factory=dict)
    alarms: list[_Alarm] = field(default_factory=list)


class StartOffsets:
    """Chooses and stores the start offsets of one consumer."""

    def __init__(
        self,
        trigger: KafkaTrigger,
        emit: Emitter,
        positions: Positions,
        cluster: str,
    ) -> None:
        self._trigger = trigger
        self._emit = emit
        self._positions = positions
        self._cluster = cluster

    async def choose(
        self, consumer: AIOKafkaConsumer, partitions: Iterable[TopicPartition]
    ) -> Limits:
        """Choose where to start and store it; returns the bounds it was chosen from."""
        async with self._positions.lock:
            stored = await self._emit.positions()
            self._positions.load(stored)
            found = await self._bounds(consumer, partitions)
            plan = await self._choose_starts(consumer, stored, found)
            if plan.fresh:
                await self._emit([], plan.fresh)
                self._positions.update(plan.fresh)
        for alarm in plan.alarms:
            alarm.log(self._trigger.name)
        return found

    def current(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, Position]:
        """Return where each of these partitions is read on."""
        return {one: self._positions.partitions[key_of(one)] for one in partitions}

    async def commit_confirmed(self, positions: Mapping[TopicPartition, Position]) -> None:
        """Note that Kafka has the new offset: a sought position no longer has to override it."""
        async with self._positions.lock:
            confirmed = {
                key_of(one): replace(at, sought=False)
                for one, at in positions.items()
                # Another member in this process may have the partition by now, and be past it.
                if at.sought and self._positions.partitions[key_of(one)] == at
            }
            if confirmed:
                await self._emit([], {key: at.text() for key, at in confirmed.items()})
                self._positions.partitions |= confirmed

    async def _bounds(
        self, consumer: AIOKafkaConsumer, partitions: Iterable[TopicPartition]
    ) -> dict[TopicPartition, Bounds]:
        """Ask for bounds; a log that looks cut or recreated is asked about again before it counts.

        A broker that has just become leader may lack the newest records for a moment, and the
        answer decides whether records run again.
        """
        for _ in range(_SECOND_LOOKS):
            found = await self._bounds_now(consumer, partitions)
            positions = {one: self._positions.partitions.get(key_of(one)) for one in found}
            if not any(
                at is not None and is_different_log(at, found[one]) for one, at in positions.items()
            ):
                return found
            await asyncio.sleep(_LOOK_SECONDS)
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
        cuts = await broker.cuts(consumer, self._stored_of(found))
        found |= {one: replace(found[one], cut=cut) for one, cut in cuts.items()}
        return {one: it.seen_by(self._positions.member) for one, it in found.items()}

    def _stored_of(self, found: Limits) -> dict[TopicPartition, Position]:
        """Return the stored positions in these very topics."""
        stored = {one: self._positions.partitions.get(key_of(one)) for one in found}
        return {
            one: position
            for one, position in stored.items()
            if position is not None and position.topic == found[one].topic
        }

    def _read_to(self, partition: TopicPartition, bounds: Bounds) -> int:
        """Return how far a partition is read, here or in the group."""
        position = self._positions.partitions.get(key_of(partition))
        return max(0 if position is None else position.next, bounds.committed or 0)

    async def _choose_starts(
        self, consumer: AIOKafkaConsumer, stored: Mapping[str, str], found: Limits
    ) -> _StartPlan:
        """Return the positions to store before the first fetch, and the alarms."""
        topics = {partition.topic: limits.topic for partition, limits in found.items()}
        fresh = self._new_topics(stored, topics)
        defaults = await self._default_starts(consumer, {**stored, **fresh}, found)
        plan = _StartPlan(fresh)
        for partition, limits in found.items():
            key = key_of(partition)
            before = self._positions.partitions.get(key)
            start = choose_start(before, limits, defaults.get(partition, limits.first))
            if start.position != before:
                fresh[key] = start.position.text()
            if start.alarm is not None:
                plan.alarms.append(_Alarm(key, before, limits, start))
        return plan

    def _new_topics(self, stored: Mapping[str, str], topics: Mapping[str, str]) -> dict[str, str]:
        """Return what to store of new topics (ids by name); refuses another cluster's."""
        fresh: dict[str, str] = {}
        for topic, its_id in topics.items():
            known = read_known_topic(stored.get(topic))
            if known is None:
                fresh[topic] = KnownTopic(self._cluster, 0, its_id).text()
            elif known.cluster != self._cluster:
                raise TriggerError(
                    f"the positions of topic {topic} are of cluster {known.cluster}, and this is "
                    f"{self._cluster}: say where to read on with "
                    f"`turnout trigger seek {self._trigger.name!r} --to start|end --rerun`"
                )
            elif its_id and not known.id:
                fresh[topic] = replace(known, id=its_id).text()
            elif its_id and known.id != its_id:
                fresh[topic] = KnownTopic(self._cluster, 0, its_id).text()
        return fresh

    async def _default_starts(
        self, consumer: AIOKafkaConsumer, stored: Mapping[str, str], found: Limits
    ) -> dict[TopicPartition, int]:
        """Return where `start=` puts partitions; those added later begin at their first record."""
        old = {}
        for partition, limits in found.items():
            topic = read_known_topic(stored.get(partition.topic))
            if topic is not None and partition.partition < topic.partitions:
                old[partition] = limits
        start = self._trigger.start
        if start == "earliest":
            return {}
        if isinstance(start, datetime):
            unknown = {at: it for at, it in old.items() if key_of(at) not in stored}
            return await broker.offsets_at(consumer, start, unknown) if unknown else {}
        return {partition: limits.readable for partition, limits in old.items()}
