"""One consumer's session in its group: find the start, fetch, emit, commit, hand back.

Records are emitted with the new positions in one transaction, and only then is the offset committed
to Kafka: `committed <= journaled` at every moment. A rebalance keeps this too: it ends when the
last emit is answered and committed. A rebalance waits for runs only where order is asked for;
otherwise the journal is the queue. When the journal refuses, partitions pause, reading goes back to
the stored positions, and polling goes on so that the group keeps its member.

The client rebalances in a task of its own and may change the assignment at any await. So everything
here belongs to one *generation* and is dropped in the next. Not here: what a record becomes
(`record`), where to begin (`start_offsets`), commits (`commits`), handing back what waits
(`withdrawal`), what the broker is asked (`broker`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from aiokafka import (  # type: ignore[import-untyped]  # it carries no types
    AIOKafkaConsumer,
    ConsumerRebalanceListener,
    TopicPartition,
)
from aiokafka.errors import (  # type: ignore[import-untyped]  # as above
    CommitFailedError,
    CorruptRecordException,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    UnsupportedCodecError,
)

from turnout.service.domain.errors import JournalFull, Overloaded, TriggerError
from turnout.service.domain.event import Event
from turnout.service.domain.trigger import Emitter
from turnout.service.telemetry.logs import get_logger

from . import broker
from .commits import FINAL_SECONDS, Commits
from .leaders import Leaders
from .positions import Bounds, Position, Positions, is_different_log, positions_of
from .raw_batch import fetch_raw
from .record import RecordDecoder
from .start_offsets import StartOffsets
from .withdrawal import Withdrawal
from .writing import Writing

if TYPE_CHECKING:
    from . import KafkaTrigger

log = get_logger("turnout.triggers")

Batch = Mapping[TopicPartition, Sequence[Any]]

POLL_SECONDS = 0.25
CHECK_SECONDS = 2.0
DRAIN_SECONDS = 5.0
_TURN_SECONDS = 0.5  # then another member in this process may write
_FINAL_CHECK_SECONDS = 0.3
_REFUSED_SECONDS = (0.2, 5.0)

# What one bad record raises. The same call may have read other partitions already.
_UNREADABLE = (CorruptRecordException, UnsupportedCodecError, UnicodeDecodeError, ValueError)


class TopicGone(TriggerError):
    """Raised when a topic of the trigger no longer exists."""


class _CannotRead(Exception):
    """Raised when the client cannot read what comes next."""


@dataclass(frozen=True, slots=True)
class _NewRecords:
    """The new records of a batch, and the positions behind them."""

    records: list[tuple[RecordDecoder, Sequence[Any]]]
    positions: dict[TopicPartition, Position]

    def events(self, now: datetime) -> list[Event]:
        """Return the events of the records, in their order."""
        return [
            decoder.event(record, now)
            for decoder, records in self.records
            for record in records
            if record.value is not None or decoder.null != "skip"
        ]


class ConsumerSession(ConsumerRebalanceListener):  # type: ignore[misc]  # the client carries no types
    """Reads the partitions the group gives this member, until cancelled."""

    def __init__(self, trigger: KafkaTrigger, emit: Emitter, cluster: str) -> None:
        self._trigger = trigger
        self._emit = emit
        self._cluster = cluster
        self._positions: Positions = positions_of(emit)
        self._start_offsets = StartOffsets(trigger, emit, self._positions, cluster)
        self._leaders = Leaders(emit, self._positions)
        self._withdrawal = Withdrawal(trigger.name, emit, self._positions, cluster)
        self._started_at: dict[TopicPartition, Position] = {}
        self._generation = 0
        self._rebalances = 0
        self._without_start: set[TopicPartition] = set()
        self._decoders: dict[TopicPartition, RecordDecoder] = {}
        self._assigned = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._leaving = False
        self._is_down = False
        self._paused_until: float | None = None
        self._refusals = 0
        self.consumer: AIOKafkaConsumer = None
        self._commits: Commits

    async def run(self, connection: Mapping[str, Any]) -> None:
        """Join the group and read; an error of the cluster is a `TriggerError`."""
        options = self._trigger.consumer_options()
        async with broker.open_consumer(connection, **options) as self.consumer:
            self._commits = Commits(self.consumer, self._trigger.name)
            self._trigger.subscribe(self.consumer, self)
            with broker.as_trigger_error("cannot join the group"):
                await broker.started(self.consumer)
            await self._assigned.wait()
            self._emit.show("paused_partitions", 0)
            try:
                async with asyncio.TaskGroup() as tasks:
                    beside = [
                        tasks.create_task(self._commits.keep_committing()),
                        tasks.create_task(self._keep_checking()),
                    ]
                    try:
                        await self._read()
                    finally:
                        for task in beside:
                            task.cancel()
            except BaseExceptionGroup as several:
                raise several.exceptions[0] from None
            except asyncio.CancelledError:
                self._show_no_lag(self._keys())  # another member may have them
                raise
            except Exception:
                self._positions.unread |= self._keys()  # and their lag stays visible
                raise
            finally:
                if not self._is_down:
                    await self._finish()

    async def _finish(self) -> None:
        """Before leaving the group: commit the rest, hand back what waits, store the leaders."""
        await self._commits.commit_remaining()
        await self._give_back(FINAL_SECONDS)
        with suppress(TriggerError, TimeoutError, IllegalStateError):
            async with asyncio.timeout(_FINAL_CHECK_SECONDS):
                await self._leaders.store_now(self.consumer, self._read_to())

    # ------------------------------------------------------------ the loop

    async def _read(self) -> None:
        while True:
            self._resume_when_due()
            if self._without_start and self._paused_until is None:
                await self._set_start_offsets()
            elif self._without_start:
                await asyncio.sleep(POLL_SECONDS)  # without positions a poll returns at once
            try:
                batch = await self._fetch(POLL_SECONDS, await self._emit.credit())
                batch = {**self._advanced(), **batch}
                if batch:
                    await self._take(batch)
            except _CannotRead as failure:
                await self._recover(failure.__cause__)

    async def _fetch(self, seconds: float, most: int) -> Batch:
        """Poll, also while everything is paused: the group removes a member that does not poll."""
        try:
            found: Batch = await self.consumer.getmany(
                timeout_ms=int(seconds * 1000), max_records=most
            )
        except NoOffsetForPartitionError:
            return {}  # a partition has no position yet
        except (OffsetOutOfRangeError, *_UNREADABLE) as error:
            raise _CannotRead from error
        except KafkaError as error:
            raise TriggerError(f"reading stopped: {broker.reason(error)}") from error
        return found

    async def _recover(self, error: BaseException | None) -> None:
        """Go on behind what the client could not read."""
        self._rewind()
        if isinstance(error, OffsetOutOfRangeError):
            self._without_start |= set(self._decoders)
        else:
            await self._skip_unreadable(error)

    async def _skip_unreadable(self, error: BaseException | None) -> None:
        """Read past the record that the client failed on, whichever partition it is in."""
        generation, is_past = self._generation, False
        for partition in list(self._decoders):
            offset = self._next(partition)
            with broker.as_trigger_error("cannot read past a bad record"):
                async with asyncio.timeout(broker.ANSWER_SECONDS):
                    found = await fetch_raw(self.consumer, partition, offset)
            if generation != self._generation:
                return
            if any(record.error is not None for record in found.records):
                await self._take({partition: found.records}, {partition: found.next})
                self._rewind()
                is_past = True
        if not is_past:
            raise TriggerError(f"reading stopped: {error}") from error
        log.warning("kafka.record_unreadable", trigger=self._trigger.name, error=str(error))

    # ------------------------------------------------------------ into the journal

    async def _take(self, batch: Batch, ends: Mapping[TopicPartition, int] | None = None) -> None:
        """Write a batch to the journal, and the batches that are ready behind it.

        `ends` comes with raw records and maps each partition to the offset behind them.
        """
        try:
            async with Writing(self._positions.lock) as writing:
                await self._fill(writing, batch, ends or {})
        except (Overloaded, JournalFull) as refusal:
            self._back_off(refusal)
        finally:
            self._idle.set()

    async def _fill(
        self, writing: Writing, batch: Batch, ends: Mapping[TopicPartition, int]
    ) -> None:
        """Write a batch, and go on while more are ready."""
        submitted: dict[TopicPartition, Position] = {}
        end = asyncio.get_running_loop().time() + _TURN_SECONDS
        while batch and not self._leaving:
            fresh = self._new_records(batch, ends, submitted)
            if fresh.positions:
                submitted |= fresh.positions
                self._idle.clear()
                await writing.add(partial(self._write, fresh))
            if ends or self._without_start or asyncio.get_running_loop().time() > end:
                return
            most = await self._emit.credit()
            if self._leaving:
                return  # a rebalance began meanwhile and does not wait for this
            # What is fetched now must be written: it is not fetched again.
            batch = await self._fetch(0, most)

    def _advanced(self) -> Batch:
        """Return, without records, the partitions where the client has moved on without a record.

        Transaction markers, aborted records and the gaps of compaction are no records, but they are
        read, and the position moves past them.
        """
        if self._leaving or self._without_start:
            return {}  # what is fetched now may be dropped, and must be read again
        return {one: () for one in self._decoders if self._position(one) > self._next(one)}

    def _position(self, partition: TopicPartition) -> int:
        """Return the offset that the client reads next, -1 if it has none."""
        subscription = self.consumer._subscription.subscription  # `position()` would wait for one
        assignment = None if subscription is None else subscription.assignment
        state = None if assignment is None else assignment.state_value(partition)
        return state.position if state is not None and state.has_valid_position else -1

    def _new_records(
        self,
        batch: Batch,
        ends: Mapping[TopicPartition, int],
        submitted: Mapping[TopicPartition, Position],
    ) -> _NewRecords:
        """Return what of a batch is behind the stored positions and behind what is submitted."""
        fresh = _NewRecords([], {})
        for partition, records in batch.items():
            decoder = self._decoders.get(partition)
            if decoder is None:
                continue  # its start is not known yet, or it is lost
            position = (
                submitted.get(partition) or self._positions.partitions[broker.key_of(partition)]
            )
            if records and records[0].offset < position.next:
                records = [record for record in records if record.offset >= position.next]
            read_to = ends[partition] if partition in ends else self._position(partition)
            following = max(records[-1].offset + 1 if records else 0, read_to)
            if following > position.next:
                if position.done:
                    records = [one for one in records if not position.is_done(one.offset)]
                fresh.records.append((decoder, records))
                fresh.positions[partition] = position.read_to(following)
        return fresh

    async def _write(self, fresh: _NewRecords, before: asyncio.Task[None] | None) -> None:
        """Emit records with their positions, after the batch before."""
        events = fresh.events(self._emit.now())
        positions = {broker.key_of(at): to.text() for at, to in fresh.positions.items()}
        await self._emit(events, positions, after=before)
        for partition, position in fresh.positions.items():
            self._positions.partitions[broker.key_of(partition)] = position
            if partition in self._decoders:
                self._commits.note(partition, position)
        if self._refusals:
            self._refusals = 0
            log.info("kafka.resumed", trigger=self._trigger.name)

    # ------------------------------------------------------------ where to read

    async def _set_start_offsets(self) -> None:
        """Find where to start in newly assigned partitions, store it, and seek there."""
        generation, partitions = self._generation, set(self._without_start)
        try:
            found = await self._start_offsets.choose(self.consumer, partitions)
            if generation != self._generation:
                return
            for partition in partitions:
                self._start_reading(partition)
            starts = self._start_offsets.current(partitions)
            await self._commits.commit_starts(starts, found)
            await self._start_offsets.commit_confirmed(starts)
        except (IllegalStateError, CommitFailedError):
            return  # the assignment has changed; the listener gets the new one
        except (Overloaded, JournalFull) as refusal:
            self._back_off(refusal)
            return
        if generation == self._generation:
            self._without_start -= partitions
            for partition in partitions:
                self._show_lag(partition, found[partition].readable)
            self._emit.up()

    def _start_reading(self, partition: TopicPartition) -> None:
        position = self._started_at[partition] = self._positions.partitions[
            broker.key_of(partition)
        ]
        self._decoders[partition] = self._trigger.decoder(
            self._cluster, partition.topic, partition.partition, position.epoch
        )
        self.consumer.seek(partition, position.next)
        if self._paused_until is not None:
            self.consumer.pause(partition)  # a rebalance ends pauses

    def _next(self, partition: TopicPartition) -> int:
        return self._positions.partitions[broker.key_of(partition)].next

    def _rewind(self) -> None:
        """Go back to the stored positions everywhere, also over what was fetched already."""
        for partition in self._decoders:
            with suppress(IllegalStateError):
                self.consumer.seek(partition, self._next(partition))

    # ------------------------------------------------------------ a refusing journal

    def _back_off(self, refusal: Overloaded | JournalFull) -> None:
        """Pause everything for a while and go back to the stored positions; polling goes on."""
        first, longest = _REFUSED_SECONDS
        delay = min(first * 2**self._refusals, longest)
        if not self._refusals:
            log.warning("kafka.paused", trigger=self._trigger.name, reason=str(refusal))
        self._refusals = min(self._refusals + 1, 10)
        self._paused_until = asyncio.get_running_loop().time() + delay
        for partition in self._decoders:
            with suppress(IllegalStateError):
                self.consumer.pause(partition)
        self._rewind()
        self._emit.show("paused_partitions", len(self._decoders))

    def _resume_when_due(self) -> None:
        due = self._paused_until
        if due is None or asyncio.get_running_loop().time() < due:
            return
        self._paused_until = None
        for partition in self._decoders:
            with suppress(IllegalStateError):
                self.consumer.resume(partition)
        self._emit.show("paused_partitions", 0)

    # ------------------------------------------------------------ the group

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Finish the running emits, commit them, and forget the generation.

        Where order is asked for, first hand back what waits and wait for what runs: the next member
        begins behind both.
        """
        self._leaving = True
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._idle.wait()
        if revoked:
            await self._commits.commit()
        if revoked and self._emit.keeps_order:
            seconds = self._trigger.max_poll_seconds / 2  # the group waits twice as long
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._give_back(seconds)
                    await self._emit.until_ended(list(map(broker.key_of, revoked)), seconds)
        self._generation += 1
        self._show_no_lag(map(broker.key_of, revoked))
        self._decoders.clear()
        self._started_at.clear()
        self._without_start.clear()
        self._commits.forget()

    async def _give_back(self, seconds: float) -> None:
        """Hand back what waits, within `seconds`, where order is asked for."""
        if not self._emit.keeps_order:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._withdrawal.withdraw(self._started_at, self._commits)

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Find the start of the new partitions before anything of them is emitted."""
        self._generation += 1
        self._leaving = False
        self._without_start = set(assigned)
        self._rebalances += 1
        # Partitions left unread by an error may belong to another member now.
        self._show_no_lag(self._positions.unread - {broker.key_of(one) for one in assigned})
        self._positions.unread.clear()
        self._emit.show("rebalances", self._rebalances)
        self._emit.show("partitions", len(assigned))
        self._assigned.set()
        if not assigned:
            self._emit.up()  # other members have them all

    # ------------------------------------------------------------ watching the cluster

    async def _keep_checking(self) -> None:
        """Report lag, and brokers that do not answer: the client tells nobody."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self._check_cluster()
            except TopicGone:
                raise  # the trigger restarts and waits for the topic
            except TriggerError as error:
                self._is_down = True
                self._emit.down(str(error))
            except IllegalStateError:
                pass
            else:
                if self._is_down:
                    self._is_down = False
                    self._emit.up()

    async def _check_cluster(self) -> None:
        with broker.as_trigger_error("Kafka does not answer"):
            async with asyncio.timeout(broker.ANSWER_SECONDS / 3):
                topics = await self.consumer.topics()
        gone = set(self._trigger.topics) - topics
        if gone:
            raise TopicGone(f"topic {min(gone)!r} is gone")
        if any(self.consumer.partitions_for_topic(one) is None for one in self._trigger.topics):
            # It was recreated, and the client would not look again for half a minute.
            self.consumer._client.force_metadata_update()
        read_to = self._read_to()
        if not read_to:
            return
        its = await broker.identities(self.consumer, read_to)
        ends = await broker.ends(self.consumer, read_to)
        cuts = await self._leaders.cuts(self.consumer, self._leaders.changed(its))
        for partition, (readable, end) in ends.items():
            if partition not in self._decoders:
                continue
            self._show_lag(partition, readable)
            position = self._positions.partitions[broker.key_of(partition)]
            bounds = Bounds(0, end, None, its[partition].topic, cut=cuts.get(partition))
            if is_different_log(position, bounds):  # a read may not notice
                self._without_start.add(partition)
        if not self._without_start:
            await self._leaders.store(self.consumer, its, read_to)

    def _read_to(self) -> dict[TopicPartition, int]:
        """Return how far each partition is read whose start is known."""
        return {one: self._next(one) for one in self._decoders if one not in self._without_start}

    def _show_lag(self, partition: TopicPartition, readable: int) -> None:
        self._emit.lag(broker.key_of(partition), max(readable - self._next(partition), 0))

    def _show_no_lag(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._emit.lag(key, 0)

    def _keys(self) -> set[str]:
        return {broker.key_of(partition) for partition in self._decoders}
