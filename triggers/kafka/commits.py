"""Telling Kafka what is journaled: never more, never backwards, and all of it before a goodbye.

Lag tools and autoscalers look at the group's committed offsets, and a member with another journal
begins where they end. They follow the journal in rounds; a clean stop and a rebalance have the
rest told first. Not here: what is journaled (`reading`).
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

from turnout.service.logs import get_logger

from . import broker

log = get_logger("turnout.triggers")

ROUND_SECONDS = 0.2
TELL_SECONDS = 5.0
LAST_SECONDS = 2.0


class Commits:
    """What one consumer's partitions are journaled up to, and what Kafka has heard of it."""

    def __init__(self, consumer: AIOKafkaConsumer, trigger: str) -> None:
        self._consumer = consumer
        self._trigger = trigger
        self._owed: dict[TopicPartition, int] = {}
        self._told: dict[TopicPartition, int] = {}
        self._wanted = asyncio.Event()
        self._turn = asyncio.Lock()  # two at once could land in either order

    def owe(self, partition: TopicPartition, offset: int) -> None:
        """Take down that a partition is journaled up to `offset`."""
        self._owed[partition] = offset
        self._wanted.set()

    def has_told(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Take down what Kafka was told elsewhere."""
        self._told |= offsets

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
                partition: offset
                for partition, offset in self._owed.items()
                if partition in assigned and offset > self._told.get(partition, -1)
            }
            if not news:
                return
            try:
                async with asyncio.timeout(TELL_SECONDS):
                    await self._consumer.commit(news)
            except (CommitFailedError, IllegalStateError):
                return  # another member has them now, and the ledger knows
            except broker.CLIENT_ERRORS as error:
                self._wanted.set()
                log.debug("kafka.commit_failed", trigger=self._trigger, error=str(error))
                return
            self._told |= {one: at for one, at in news.items() if one in self._owed}

    async def tell_the_last(self) -> None:
        """Tell Kafka all there is before the consumer stops; a broker that is slow is left."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                await self.tell()
