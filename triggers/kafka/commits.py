"""Telling Kafka what is journaled: never more, and all of it before a goodbye.

Lag tools and autoscalers look at the group's committed offsets, and a member with another journal
begins where they end. They follow the journal in rounds; a clean stop and a rebalance have the
rest told first. Offsets go backwards only where reading does: to a place, or what is handed back.
Not here: what is journaled (`reading`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]  # no types
from aiokafka.errors import (  # type: ignore[import-untyped]  # as above
    CommitFailedError,
    IllegalStateError,
)

from turnout.service.domain.errors import TriggerError
from turnout.service.telemetry.logs import get_logger

from . import broker
from .positions import Bounds, Place

log = get_logger("turnout.triggers")

ROUND_SECONDS = 0.2
TELL_SECONDS = 5.0
LAST_SECONDS = 2.0


class Commits:
    """What one consumer's partitions are journaled up to, and what Kafka has heard of it."""

    def __init__(self, consumer: AIOKafkaConsumer, trigger: str) -> None:
        self._consumer = consumer
        self._trigger = trigger
        self._owed: dict[TopicPartition, Place] = {}
        self._told: dict[TopicPartition, int] = {}
        self._wanted = asyncio.Event()
        self._turn = asyncio.Lock()  # two at once could land in either order

    def owe(self, partition: TopicPartition, place: Place) -> None:
        """Take down that a partition is journaled up to `place`."""
        self._owed[partition] = place
        self._wanted.set()

    async def begin(
        self, places: Mapping[TopicPartition, Place], limits: Mapping[TopicPartition, Bounds]
    ) -> None:
        """Tell Kafka where reading goes on, also where that is further back.

        What was owed of these partitions before is void. Raises `TriggerError`, and what the client
        raises for partitions that are another member's meanwhile.
        """
        async with self._turn:
            news = {one: at for one, at in places.items() if limits[one].committed != at.next}
            if news:
                await self._commit(news, broker.MEET_SECONDS)
            for partition, place in places.items():
                self._owed.pop(partition, None)
                self._told[partition] = place.next

    async def hand_back(self, places: Mapping[TopicPartition, Place]) -> None:
        """Tell Kafka to go back to these places; what was owed of them before is void.

        Raises `TriggerError`, and what the client raises when the partitions are lost already.
        """
        async with self._turn:
            await self._commit(places, TELL_SECONDS)
            for partition, place in places.items():
                self._owed.pop(partition, None)
                self._told[partition] = place.next

    def forget(self) -> None:
        """Drop everything: the partitions are another member's now."""
        self._owed.clear()
        self._told.clear()

    async def keep_telling(self) -> None:
        """Tell Kafka in rounds, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self.tell()
            await asyncio.sleep(ROUND_SECONDS)

    async def tell(self) -> None:
        """Tell Kafka what it has not heard; what fails is owed, and the next call tries again."""
        async with self._turn:
            assigned = self._consumer.assignment()
            news = {
                partition: place
                for partition, place in self._owed.items()
                if partition in assigned and place.next > self._told.get(partition, -1)
            }
            if not news:
                return
            try:
                await self._commit(news, TELL_SECONDS)
            except (CommitFailedError, IllegalStateError):
                return  # another member has them now, and the ledger knows
            except TriggerError as error:
                self._wanted.set()
                log.debug("kafka.commit_failed", trigger=self._trigger, error=str(error))
                return
            self._told |= {one: at.next for one, at in news.items() if one in self._owed}

    async def _commit(self, news: Mapping[TopicPartition, Place], seconds: float) -> None:
        told = {partition: broker.to_commit(place) for partition, place in news.items()}
        with broker.named("cannot commit"):
            async with asyncio.timeout(seconds):
                await self._consumer.commit(told)

    async def tell_the_last(self) -> None:
        """Tell Kafka all there is before the consumer stops; a broker that is slow is left."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                await self.tell()
