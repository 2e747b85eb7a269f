"""One consumer's session in its group: find the start, read, commit, hand back.

Records are written with the new positions in one transaction, and only then is the offset committed
to Kafka: `committed <= journaled` at every moment. A rebalance keeps this too: it ends when the
last write is answered and committed. A rebalance waits for runs only where order is asked for;
otherwise the journal is the queue. When the journal refuses, reading pauses and goes back to the
stored positions (`pause`).

Not here: what this member reads now (`assignment`), reading and writing (`batches`), where to begin
(`start_offsets`), commits (`commits`), handing back what waits (`withdrawal`), watching the cluster
(`cluster_check`).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from aiokafka import (  # type: ignore[import-untyped]  # it carries no types
    AIOKafkaConsumer,
    ConsumerRebalanceListener,
    TopicPartition,
)
from aiokafka.errors import (  # type: ignore[import-untyped]  # as above
    CommitFailedError,
    IllegalStateError,
    OffsetOutOfRangeError,
)

from turnout.service.domain.errors import (
    JournalFull,
    Overloaded,
    PositionsMoved,
    TriggerError,
)
from turnout.service.domain.trigger import Emitter
from turnout.service.telemetry.logs import get_logger

from .assignment import Assignment
from .batches import Batches, CannotRead
from .client import ANSWER_SECONDS, as_trigger_error, started
from .cluster_check import ClusterCheck
from .commits import FINAL_SECONDS, Commits
from .pause import Pause
from .positions import Positions, key_of
from .raw_batch import fetch_raw
from .start_offsets import StartOffsets
from .withdrawal import Withdrawal

if TYPE_CHECKING:
    from . import KafkaTrigger

log = get_logger("turnout.triggers")

POLL_SECONDS = 0.25
DRAIN_SECONDS = 5.0


class ConsumerSession(ConsumerRebalanceListener):  # type: ignore[misc]  # the client carries no types
    """Reads the partitions that the group gives this member, until cancelled."""

    def __init__(
        self, trigger: KafkaTrigger, emit: Emitter, cluster: str, consumer: AIOKafkaConsumer
    ) -> None:
        self._trigger = trigger
        self._emit = emit
        self._cluster = cluster
        self._consumer = consumer
        self._positions = Positions()
        self._assignment = Assignment(consumer, self._positions)
        self._commits = Commits(consumer, trigger.name, self._positions)
        self._pause = Pause(trigger.name, emit, consumer, self._assignment)
        self._batches = Batches(
            emit, consumer, self._assignment, self._positions, self._commits, self._pause
        )
        self._start_offsets = StartOffsets(trigger, emit, self._positions, cluster)
        self._withdrawal = Withdrawal(trigger.name, emit, self._positions, cluster)
        self._check = ClusterCheck(trigger, emit, consumer, self._assignment)
        self._rebalances = 0
        self._assigned = asyncio.Event()

    async def run(self) -> None:
        """Join the group and read; an error of the cluster is a `TriggerError`."""
        self._trigger.subscribe(self._consumer, self)
        with as_trigger_error("cannot join the group"):
            await started(self._consumer)
        await self._assigned.wait()
        self._emit.show("paused_partitions", 0)
        try:
            await self._read_checked()
        except asyncio.CancelledError:
            self._check.show_no_lag(self._assignment.keys())  # another member may have them
            raise
        finally:
            if not self._check.is_down:
                await self._finish()

    async def _finish(self) -> None:
        """Before leaving the group: commit the rest, and hand back what waits."""
        await self._commits.commit_remaining()
        await self._hand_back(FINAL_SECONDS)

    # ------------------------------------------------------------ the loop

    async def _read_checked(self) -> None:
        """Read, and meanwhile commit and check the cluster; raises the first error of the three."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._commits.keep_committing())
                tasks.create_task(self._check.keep_checking())
                await self._read()
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None

    async def _read(self) -> None:
        while True:
            self._pause.end_when_due()
            if self._assignment.without_start:
                if not self._pause.active:
                    await self._set_start_offsets()
                else:
                    await asyncio.sleep(POLL_SECONDS)  # without positions a poll returns at once
            try:
                if batch := await self._batches.fetch(POLL_SECONDS):
                    await self._batches.write(batch)
            except (Overloaded, JournalFull) as refusal:
                self._pause.begin(refusal)
            except PositionsMoved as moved:
                log.info("kafka.positions_moved", trigger=self._trigger.name, error=str(moved))
                self._assignment.find_starts_again()
            except CannotRead as failure:
                await self._recover(failure.__cause__)

    async def _recover(self, error: BaseException | None) -> None:
        """Go on behind what the client could not read."""
        self._assignment.rewind()
        if isinstance(error, OffsetOutOfRangeError):
            self._assignment.find_starts_again()
            return
        try:
            await self._skip_unreadable(error)
        except (Overloaded, JournalFull) as refusal:
            self._pause.begin(refusal)

    async def _skip_unreadable(self, error: BaseException | None) -> None:
        """Read past the record that the client failed on, whichever partition it is in."""
        generation, is_past = self._assignment.generation, False
        for partition in list(self._assignment.decoders):
            offset = self._assignment.position(partition).next
            with as_trigger_error("cannot read past a bad record"):
                async with asyncio.timeout(ANSWER_SECONDS):
                    found = await fetch_raw(self._consumer, partition, offset)
            if generation != self._assignment.generation:
                return
            if any(record.error is not None for record in found.records):
                await self._batches.write({partition: found.records}, {partition: found.next})
                self._assignment.rewind()
                is_past = True
        if not is_past:
            raise TriggerError(f"reading stopped: {error}") from error
        log.warning("kafka.record_unreadable", trigger=self._trigger.name, error=str(error))

    async def _set_start_offsets(self) -> None:
        """Find where to start in newly assigned partitions, store it, and seek there."""
        assignment = self._assignment
        generation, partitions = assignment.generation, set(assignment.without_start)
        try:
            found = await self._start_offsets.choose(self._consumer, partitions)
            if generation != assignment.generation:
                return
            for partition in partitions:
                self._start_reading(partition)
            starts = self._start_offsets.current(partitions)
            await self._commits.commit_starts(starts, found)
            await self._start_offsets.commit_confirmed(starts)
        except (IllegalStateError, CommitFailedError):
            return  # the assignment has changed; the listener gets the new one
        except PositionsMoved:
            return  # between reading and storing them: chosen again from what is stored now
        except (Overloaded, JournalFull) as refusal:
            self._pause.begin(refusal)
            return
        if generation == assignment.generation:
            assignment.without_start -= partitions
            for partition in partitions:
                self._check.show_lag(partition, found[partition].readable)
            self._emit.up()

    def _start_reading(self, partition: TopicPartition) -> None:
        epoch = self._assignment.position(partition).epoch
        decoder = self._trigger.decoder(self._cluster, partition.topic, partition.partition, epoch)
        self._assignment.start(partition, decoder)
        self._pause.apply(partition)

    # ------------------------------------------------------------ the group

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Finish the running writes, commit them, and end the generation.

        Where order is asked for, first hand back what waits and wait for what runs: the next member
        begins behind both.
        """
        self._assignment.leaving = True
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._batches.idle.wait()
        if revoked:
            await self._commits.commit()
        if revoked and self._emit.keeps_order:
            seconds = self._trigger.max_poll_seconds / 2  # the group waits twice as long
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._hand_back(seconds)
                    await self._emit.until_ended(list(map(key_of, revoked)), seconds)
        self._check.show_no_lag(map(key_of, revoked))
        self._assignment.revoke()
        self._commits.forget()

    async def _hand_back(self, seconds: float) -> None:
        """Hand back what waits, within `seconds`, where order is asked for."""
        if not self._emit.keeps_order:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._withdrawal.withdraw(self._assignment.started_at, self._commits)

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Find the start of the new partitions before anything of them is emitted."""
        self._assignment.assign(assigned)
        self._rebalances += 1
        # What an error left unread shows its lag until another member may have it.
        self._check.show_no_lag(self._emit.lags.keys() - set(map(key_of, assigned)))
        self._emit.show("rebalances", self._rebalances)
        self._emit.show("partitions", len(assigned))
        self._assigned.set()
        if not assigned:
            self._emit.up()  # other members have them all
