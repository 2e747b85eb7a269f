"""Checks the cluster every two seconds: lag, brokers that are silent, logs that were cut.

It also tells up to when everything that was in the partitions has been read.

The client reports none of these, and reading alone may not notice them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]  # no types
from aiokafka.errors import IllegalStateError  # type: ignore[import-untyped]  # as above

from turnout.service.domain.errors import TriggerError
from turnout.service.domain.trigger import Emitter

from . import broker
from .assignment import Assignment
from .client import ANSWER_SECONDS, as_trigger_error
from .positions import Bounds, is_different_log, key_of
from .topic_ids import Identity

if TYPE_CHECKING:
    from . import KafkaTrigger

CHECK_SECONDS = 2.0


class TopicGone(TriggerError):
    """Raised when a topic of the trigger no longer exists."""


class ClusterCheck:
    """Checks the cluster for one member; `is_down` while it does not answer."""

    def __init__(
        self,
        trigger: KafkaTrigger,
        emit: Emitter,
        consumer: AIOKafkaConsumer,
        assignment: Assignment,
    ) -> None:
        self._trigger = trigger
        self._emit = emit
        self._consumer = consumer
        self._assignment = assignment
        self._intact: dict[TopicPartition, int] = {}
        self._behind: tuple[float, Mapping[TopicPartition, int]] | None = None
        self.is_down = False

    async def keep_checking(self) -> None:
        """Check again and again, until cancelled; raises `TopicGone`."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self._check()
            except TopicGone:
                raise  # the trigger restarts and waits for the topic
            except TriggerError as error:
                self.is_down = True
                self._emit.down(str(error))
            except IllegalStateError:
                pass  # the assignment has changed
            else:
                if self.is_down:
                    self.is_down = False
                    self._emit.up()

    async def _check(self) -> None:
        asked_at = asyncio.get_running_loop().time()
        await self._check_topics()
        read_to = self._assignment.read_to()
        if not read_to:
            self._tell_progress(asked_at, {})
            return
        its = await broker.identities(self._consumer, read_to)
        ends = await broker.ends(self._consumer, read_to)
        cuts = await self._cuts(its)
        for partition, (readable, end) in ends.items():
            if partition not in self._assignment.decoders:
                continue
            self.show_lag(partition, readable)
            bounds = Bounds(0, end, None, its[partition].topic, cut=cuts.get(partition))
            if is_different_log(self._assignment.position(partition), bounds):
                self._assignment.find_start([partition])
        self._tell_progress(asked_at, {one: readable for one, (readable, _) in ends.items()})

    def _tell_progress(self, asked_at: float, ends: Mapping[TopicPartition, int]) -> None:
        """Report when all was read: up to the ends of now, or else up to those of a check before.

        Of partitions that the group has given to others, those will know.
        """
        if self._assignment.leaving or self._assignment.without_start:
            return
        if self._has_read(ends):
            done: float | None = asked_at
        elif self._behind is not None and self._has_read(self._behind[1]):
            done = self._behind[0]
        else:
            done = None
        if done is not None:
            self._emit.up_to_date(asyncio.get_running_loop().time() - done)
        if done is not None or self._behind is None:
            self._behind = None if done == asked_at else (asked_at, ends)

    def _has_read(self, ends: Mapping[TopicPartition, int]) -> bool:
        read_to = self._assignment.read_to()
        return all(one in ends and at >= ends[one] for one, at in read_to.items())

    async def _cuts(self, its: Mapping[TopicPartition, Identity]) -> dict[TopicPartition, int]:
        """Return where logs were cut, looking at those whose leader has changed."""
        changed = {
            one: self._assignment.position(one)
            for one, it in its.items()
            if one in self._assignment.decoders and self._intact.get(one) != it.leader_epoch
        }
        asked = {one: at for one, at in changed.items() if at.leader_epoch < its[one].leader_epoch}
        cuts = await broker.cuts(self._consumer, asked)
        self._intact |= {one: its[one].leader_epoch for one in changed if one not in cuts}
        return cuts

    async def _check_topics(self) -> None:
        with as_trigger_error("Kafka does not answer"):
            async with asyncio.timeout(ANSWER_SECONDS / 3):
                topics = await self._consumer.topics()
        gone = set(self._trigger.topics) - topics
        if gone:
            raise TopicGone(f"topic {min(gone)!r} is gone")
        if any(self._consumer.partitions_for_topic(one) is None for one in self._trigger.topics):
            # It was recreated, and the client would not look again for half a minute.
            self._consumer._client.force_metadata_update()

    def show_lag(self, partition: TopicPartition, readable: int) -> None:
        """Show how much of a partition is not read yet."""
        lag = max(readable - self._assignment.position(partition).next, 0)
        self._emit.lag(key_of(partition), lag)

    def show_no_lag(self, keys: Iterable[str]) -> None:
        """Show no lag of partitions that are not read here any more."""
        for key in keys:
            self._emit.lag(key, 0)
