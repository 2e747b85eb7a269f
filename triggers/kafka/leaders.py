"""Stores which leader wrote what was read, to tell a log that was cut from one that has grown.

A log that lost its newest records and has grown again may end where it ended before, or further.
The leader epoch of what was read tells (`leader_epochs`). It is looked up every few seconds and
when reading ends, and stored only when it changed: it costs nothing per record. It does not cover
what was read since the last check; a cut there shows only while the log is short. Not here: what
follows from a cut (`positions`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]  # no types

from turnout.service.domain.errors import JournalFull, Overloaded
from turnout.service.domain.trigger import Emitter

from . import broker
from .positions import KnownTopic, Leader, Positions
from .topic_ids import COORDINATING, FETCHING, Identity

Identities = Mapping[TopicPartition, Identity]


class Leaders:
    """The leaders of one trigger's partitions, stored with its topics."""

    def __init__(self, emit: Emitter, positions: Positions) -> None:
        self._emit = emit
        self._positions = positions

    async def cuts(
        self, consumer: AIOKafkaConsumer, its: Iterable[tuple[TopicPartition, str]]
    ) -> dict[TopicPartition, int]:
        """Return where logs of these topics (by id) were cut and have grown again."""
        known = {one: self._known(one, topic) for one, topic in its}
        asked = {one: leader for one, leader in known.items() if leader is not None}
        return await broker.cuts(consumer, asked) if asked else {}

    def changed(self, its: Identities) -> list[tuple[TopicPartition, str]]:
        """Return the partitions, each with its topic id, whose leader has changed."""
        known = {one: self._known(one, it.topic) for one, it in its.items()}
        return [
            (one, its[one].topic)
            for one, leader in known.items()
            if leader is not None and leader[0] != its[one].leader_epoch
        ]

    async def store_now(
        self, consumer: AIOKafkaConsumer, read_to: Mapping[TopicPartition, int]
    ) -> None:
        """Check and store when reading ends, without waiting behind a fetch."""
        its = await broker.identities(consumer, read_to, COORDINATING)
        await self.store(consumer, its, read_to, over=COORDINATING)

    async def store(
        self,
        consumer: AIOKafkaConsumer,
        its: Identities,
        read_to: Mapping[TopicPartition, int],
        *,
        over: Any = FETCHING,
    ) -> None:
        """Store the leader of what was read up to `read_to`, where it changed and is certain."""
        news: dict[TopicPartition, Leader] = {}
        for one, it in its.items():
            if it.topic and it.leader_epoch >= 0:
                leader = (it.leader_epoch, read_to[one])
                if leader != self._known(one, it.topic):
                    news[one] = leader
        if not news:
            return
        # A broker may learn its own epoch late; the end of that epoch is then too low.
        short = await broker.cuts(consumer, news, over)
        with suppress(Overloaded, JournalFull):  # the next check stores it
            async with self._positions.lock:
                fresh = self._with({one: it for one, it in news.items() if one not in short}, its)
                await self._emit([], {name: topic.text() for name, topic in fresh.items()})
                self._positions.topics |= fresh

    def _with(
        self, news: Mapping[TopicPartition, Leader], its: Identities
    ) -> dict[str, KnownTopic]:
        fresh: dict[str, KnownTopic] = {}
        for one, leader in news.items():
            topic = fresh.get(one.topic) or self._positions.topics.get(one.topic)
            if topic is not None and topic.id == its[one].topic:
                leaders = {**topic.leaders, one.partition: leader}
                fresh[one.topic] = replace(topic, leaders=leaders)
        return fresh

    def _known(self, partition: TopicPartition, topic_id: str) -> Leader | None:
        topic = self._positions.topics.get(partition.topic)
        if topic is None or not topic_id or topic.id != topic_id:
            return None
        return topic.leaders.get(partition.partition)
