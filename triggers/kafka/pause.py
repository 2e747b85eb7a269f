"""Pauses reading while the journal refuses: polling goes on, so that the group keeps its member."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]  # no types
from aiokafka.errors import IllegalStateError  # type: ignore[import-untyped]  # as above

from turnout.service.domain.errors import JournalFull, Overloaded
from turnout.service.domain.trigger import Emitter
from turnout.service.telemetry.logs import get_logger

from .assignment import Assignment

log = get_logger("turnout.triggers")

_SECONDS = (0.2, 5.0)


class Pause:
    """Stops reading for growing times as long as each try is refused."""

    def __init__(
        self, trigger: str, emit: Emitter, consumer: AIOKafkaConsumer, assignment: Assignment
    ) -> None:
        self._trigger = trigger
        self._emit = emit
        self._consumer = consumer
        self._assignment = assignment
        self._until: float | None = None
        self._refusals = 0

    @property
    def active(self) -> bool:
        """Whether reading is paused now."""
        return self._until is not None

    def begin(self, refusal: Overloaded | JournalFull) -> None:
        """Pause everything for a while and go back to the stored positions."""
        first, longest = _SECONDS
        delay = min(first * 2**self._refusals, longest)
        if not self._refusals:
            log.warning("kafka.paused", trigger=self._trigger, reason=str(refusal))
        self._refusals = min(self._refusals + 1, 10)
        self._until = asyncio.get_running_loop().time() + delay
        for partition in self._assignment.decoders:
            self.apply(partition)
        self._assignment.rewind()
        self._emit.show("paused_partitions", len(self._assignment.decoders))

    def apply(self, partition: TopicPartition) -> None:
        """Pause a partition if reading is paused: a rebalance ends the client's pauses."""
        if self.active:
            with suppress(IllegalStateError):
                self._consumer.pause(partition)

    def end_when_due(self) -> None:
        """Try again when the time is up."""
        if self._until is None or asyncio.get_running_loop().time() < self._until:
            return
        self._until = None
        for partition in self._assignment.decoders:
            with suppress(IllegalStateError):
                self._consumer.resume(partition)
        self._emit.show("paused_partitions", 0)

    def accepted(self) -> None:
        """Note that the journal accepts again."""
        if self._refusals:
            self._refusals = 0
            log.info("kafka.resumed", trigger=self._trigger)
