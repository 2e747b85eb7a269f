"""Commits to Kafka what is journaled: never more, and all of it before a stop or a rebalance.

Lag tools and autoscalers look at the committed offsets of the group, and a member with another
journal begins there. Commits follow the journal at intervals; a clean stop and a rebalance commit
the rest first. Offsets go back only where reading does: to a start position, or to records that are
handed back. Not here: what is journaled (`consumer`).
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

from .client import ANSWER_SECONDS, as_trigger_error
from .commit_metadata import offset_and_metadata
from .positions import Bounds, Position, Positions

log = get_logger("turnout.triggers")

INTERVAL_SECONDS = 0.2
COMMIT_SECONDS = 5.0
FINAL_SECONDS = 2.0


class Commits:
    """The journaled positions of one consumer, and what of them is committed."""

    def __init__(self, consumer: AIOKafkaConsumer, trigger: str, positions: Positions) -> None:
        self._consumer = consumer
        self._positions = positions
        self._trigger = trigger
        self._due: dict[TopicPartition, Position] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()  # two commits at once could arrive in either order

    def note(self, partition: TopicPartition, position: Position) -> None:
        """Note for the next commit that a partition is journaled up to `position`."""
        self._due[partition] = position
        self._wake.set()

    async def commit_starts(
        self, positions: Mapping[TopicPartition, Position], limits: Mapping[TopicPartition, Bounds]
    ) -> None:
        """Commit where reading starts, also where that is further back.

        Drops what was noted for these partitions before. Raises `TriggerError`, and the client's
        errors for partitions that belong to another member by now.
        """
        async with self._turn:
            news = {one: at for one, at in positions.items() if limits[one].committed != at.next}
            if news:
                await self._send(news, ANSWER_SECONDS)
            for partition, position in positions.items():
                self._due.pop(partition, None)
                self._committed[partition] = position.next

    async def hand_back(self, positions: Mapping[TopicPartition, Position]) -> None:
        """Commit these earlier positions; drops what was noted for them before.

        Raises `TriggerError`, and the client's errors when the partitions are lost already.
        """
        async with self._turn:
            await self._send(positions, COMMIT_SECONDS)
            for partition, position in positions.items():
                self._due.pop(partition, None)
                self._committed[partition] = position.next

    def forget(self) -> None:
        """Drop everything: the partitions belong to another member now."""
        self._due.clear()
        self._committed.clear()

    async def keep_committing(self) -> None:
        """Commit at intervals, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.commit()
            await asyncio.sleep(INTERVAL_SECONDS)

    async def commit(self) -> None:
        """Commit what is new; after a failure the next call tries again."""
        async with self._turn:
            assigned = self._consumer.assignment()
            news = {
                partition: position
                for partition, position in self._due.items()
                if partition in assigned and position.next > self._committed.get(partition, -1)
            }
            if not news:
                return
            try:
                await self._send(news, COMMIT_SECONDS)
            except (CommitFailedError, IllegalStateError):
                return  # another member has them now; the journal knows where it reads on
            except TriggerError as error:
                self._wake.set()
                log.debug("kafka.commit_failed", trigger=self._trigger, error=str(error))
                return
            self._committed |= {one: at.next for one, at in news.items() if one in self._due}

    async def _send(self, news: Mapping[TopicPartition, Position], seconds: float) -> None:
        member = self._positions.member
        offsets = {one: offset_and_metadata(position, member) for one, position in news.items()}
        with as_trigger_error("cannot commit"):
            async with asyncio.timeout(seconds):
                await self._consumer.commit(offsets)

    async def commit_remaining(self) -> None:
        """Commit the rest before the consumer stops; waits for a slow broker only briefly."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FINAL_SECONDS):
                await self.commit()
