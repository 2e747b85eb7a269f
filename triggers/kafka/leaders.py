"""Which leader wrote what was read, so that a log that was cut is told from one that has grown.

A log that lost its newest records and has grown again may end where it ended before, or further.
What tells is the leader epoch of what was read (`epochs`), looked up every few seconds and when
reading ends, and written only when it has changed: none of it is of a single record. What was read
since the last look is not covered, and a cut there shows only while the log is short. Not here:
what follows from a cut (`ledger`).
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
from .positions import Leader, Ledger, Topic
from .topic_ids import COORDINATING, FETCHING, Identity

Identities = Mapping[TopicPartition, Identity]


class Leaders:
    """The leaders of one trigger's partitions, kept in the ledger's topics."""

    def __init__(self, emit: Emitter, ledger: Ledger) -> None:
        self._emit = emit
        self._ledger = ledger

    async def cuts(
        self, consumer: AIOKafkaConsumer, its: Iterable[tuple[TopicPartition, str]]
    ) -> dict[TopicPartition, int]:
        """Return where logs of these topics (by id) were cut and have been written on since."""
        known = {one: self._known(one, topic) for one, topic in its}
        asked = {one: leader for one, leader in known.items() if leader is not None}
        return await broker.cuts(consumer, asked) if asked else {}

    def changed(self, its: Identities) -> list[tuple[TopicPartition, str]]:
        """Return partitions, each with its topic's id, that have another leader than was known."""
        known = {one: self._known(one, it.topic) for one, it in its.items()}
        return [
            (one, its[one].topic)
            for one, leader in known.items()
            if leader is not None and leader[0] != its[one].leader_epoch
        ]

    async def keep_now(
        self, consumer: AIOKafkaConsumer, read_to: Mapping[TopicPartition, int]
    ) -> None:
        """Look and keep, without waiting behind a fetch: reading ends."""
        its = await broker.told(consumer, read_to, COORDINATING)
        await self.keep(consumer, its, read_to, over=COORDINATING)

    async def keep(
        self,
        consumer: AIOKafkaConsumer,
        its: Identities,
        read_to: Mapping[TopicPartition, int],
        *,
        over: Any = FETCHING,
    ) -> None:
        """Store who leads what was read up to `read_to`, where that is news and surely so."""
        news: dict[TopicPartition, Leader] = {}
        for one, it in its.items():
            if it.topic and it.leader_epoch >= 0:
                leader = (it.leader_epoch, read_to[one])
                if leader != self._known(one, it.topic):
                    news[one] = leader
        if not news:
            return
        # A broker may know its own epoch late; then the log's end of that epoch is short.
        short = await broker.cuts(consumer, news, over)
        with suppress(Overloaded, JournalFull):  # another look comes
            async with self._ledger.lock:
                fresh = self._with({one: it for one, it in news.items() if one not in short}, its)
                await self._emit([], {name: topic.text() for name, topic in fresh.items()})
                self._ledger.topics |= fresh

    def _with(self, news: Mapping[TopicPartition, Leader], its: Identities) -> dict[str, Topic]:
        fresh: dict[str, Topic] = {}
        for one, leader in news.items():
            topic = fresh.get(one.topic) or self._ledger.topics.get(one.topic)
            if topic is not None and topic.id == its[one].topic:
                leaders = {**topic.leaders, one.partition: leader}
                fresh[one.topic] = replace(topic, leaders=leaders)
        return fresh

    def _known(self, partition: TopicPartition, topic_id: str) -> Leader | None:
        topic = self._ledger.topics.get(partition.topic)
        if topic is None or not topic_id or topic.id != topic_id:
            return None
        return topic.leaders.get(partition.partition)
