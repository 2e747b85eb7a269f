"""One consumer's life in its group: place, fetch, emit, commit, hand back.

What is read is emitted with the new places in one transaction, and only then is the offset handed
to Kafka: `committed <= journaled` at every moment, also across a rebalance, which ends with the
last emit answered and committed. Handlers are waited for only at a rebalance, and only where order
is asked for: else the journal is the queue. When the journal refuses, partitions pause, reading
goes back to the ledger and polling goes on, so that the group keeps its member.

The client's assignment changes under our feet (its rebalances run in a task of their own), so
everything here is of one *generation* and counts for nothing in the next. Not here: what a record
becomes (`record`), where to begin (`placing`), telling Kafka (`commits`), giving back what waits
(`handback`), what the broker is asked (`broker`).
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
from .commits import LAST_SECONDS, Commits
from .leaders import Leaders
from .positions import Bounds, Ledger, Place, is_anew, ledger_of
from .raw_batch import salvage
from .record import Reader
from .start_offsets import Placing
from .withdrawal import GivingBack
from .writing import Writing

if TYPE_CHECKING:
    from . import KafkaTrigger

log = get_logger("turnout.triggers")

Batch = Mapping[TopicPartition, Sequence[Any]]

POLL_SECONDS = 0.25
LOOK_SECONDS = 2.0
DRAIN_SECONDS = 5.0
_TURN_SECONDS = 0.5  # then another member of this process has its turn at the trigger
_LAST_LOOK_SECONDS = 0.3
_REFUSED_SECONDS = (0.2, 5.0)

# What one bad record raises, out of a call that has read others of other partitions by then.
_UNREADABLE = (CorruptRecordException, UnsupportedCodecError, UnicodeDecodeError, ValueError)


class TopicGone(TriggerError):
    """Raised when a topic of the trigger does not exist any more."""


class _Stumbled(Exception):
    """Raised when the client cannot read what is next, and something has to be done about it."""


@dataclass(frozen=True, slots=True)
class _Share:
    """What of a batch is new, and the places behind it."""

    records: list[tuple[Reader, Sequence[Any]]]
    places: dict[TopicPartition, Place]

    def events(self, now: datetime) -> list[Event]:
        """Return the events of the records, in their order."""
        return [
            reader.event(record, now)
            for reader, records in self.records
            for record in records
            if record.value is not None or reader.null != "skip"
        ]


class Reading(ConsumerRebalanceListener):  # type: ignore[misc]  # the client carries no types
    """Reads the partitions the group gives this member, until cancelled."""

    def __init__(self, trigger: KafkaTrigger, emit: Emitter, cluster: str) -> None:
        self._trigger = trigger
        self._emit = emit
        self._cluster = cluster
        self._ledger: Ledger = ledger_of(emit)
        self._placing = Placing(trigger, emit, self._ledger, cluster)
        self._leaders = Leaders(emit, self._ledger)
        self._giving_back = GivingBack(trigger.name, emit, self._ledger, cluster)
        self._placed: dict[TopicPartition, Place] = {}
        self._generation = 0
        self._rebalances = 0
        self._unplaced: set[TopicPartition] = set()
        self._readers: dict[TopicPartition, Reader] = {}
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
        async with broker.consumer(connection, **options) as self.consumer:
            self._commits = Commits(self.consumer, self._trigger.name)
            self._trigger.subscribe(self.consumer, self)
            with broker.named("cannot join the group"):
                await broker.started(self.consumer)
            await self._assigned.wait()
            self._emit.show("paused_partitions", 0)
            try:
                async with asyncio.TaskGroup() as tasks:
                    beside = [
                        tasks.create_task(self._commits.keep_telling()),
                        tasks.create_task(self._keep_looking()),
                    ]
                    try:
                        await self._read()
                    finally:
                        for task in beside:
                            task.cancel()
            except BaseExceptionGroup as several:
                raise several.exceptions[0] from None
            except asyncio.CancelledError:
                self._show_no_lag(self._keys())  # another member's, for all we know
                raise
            except Exception:
                self._ledger.unread |= self._keys()  # and that stays to be seen
                raise
            finally:
                if not self._is_down:
                    await self._tell_the_last()

    async def _tell_the_last(self) -> None:
        """Leave the group with all told that was read, and what waits given back."""
        await self._commits.tell_the_last()
        await self._give_back(LAST_SECONDS)
        with suppress(TriggerError, TimeoutError, IllegalStateError):
            async with asyncio.timeout(_LAST_LOOK_SECONDS):
                await self._leaders.keep_now(self.consumer, self._read_to())

    # ------------------------------------------------------------ the loop

    async def _read(self) -> None:
        while True:
            self._resume_when_due()
            if self._unplaced and self._paused_until is None:
                await self._place()
            elif self._unplaced:
                await asyncio.sleep(POLL_SECONDS)  # where there is no place, polling waits for none
            try:
                batch = await self._fetch(POLL_SECONDS, await self._emit.credit())
                batch = {**self._passed(), **batch}
                if batch:
                    await self._take(batch)
            except _Stumbled as stumbled:
                await self._get_up(stumbled.__cause__)

    async def _fetch(self, seconds: float, most: int) -> Batch:
        """Poll, also while everything is paused: a member that does not poll is thrown out."""
        try:
            found: Batch = await self.consumer.getmany(
                timeout_ms=int(seconds * 1000), max_records=most
            )
        except NoOffsetForPartitionError:
            return {}  # of a partition that has no place yet
        except (OffsetOutOfRangeError, *_UNREADABLE) as error:
            raise _Stumbled from error
        except KafkaError as error:
            raise TriggerError(f"reading stopped: {broker.reason(error)}") from error
        return found

    async def _get_up(self, error: BaseException | None) -> None:
        """Go on behind what the client could not read."""
        self._rewind()
        if isinstance(error, OffsetOutOfRangeError):
            self._unplaced |= set(self._readers)
        else:
            await self._salvage(error)

    async def _salvage(self, error: BaseException | None) -> None:
        """Read past the record the client stumbled over, wherever it is."""
        generation, is_past = self._generation, False
        for partition in list(self._readers):
            offset = self._next(partition)
            with broker.named("cannot read past a bad record"):
                async with asyncio.timeout(broker.MEET_SECONDS):
                    found = await salvage(self.consumer, partition, offset)
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
        """Have a batch written, and those at hand behind it.

        `ends` comes with salvaged records and says what they stand for.
        """
        try:
            async with Writing(self._ledger.lock) as writing:
                await self._fill(writing, batch, ends or {})
        except (Overloaded, JournalFull) as refusal:
            self._back_off(refusal)
        finally:
            self._idle.set()

    async def _fill(
        self, writing: Writing, batch: Batch, ends: Mapping[TopicPartition, int]
    ) -> None:
        """Write a batch, and go on while there are more at hand."""
        handed: dict[TopicPartition, Place] = {}
        end = asyncio.get_running_loop().time() + _TURN_SECONDS
        while batch and not self._leaving:
            share = self._share(batch, ends, handed)
            if share.places:
                handed |= share.places
                self._idle.clear()
                await writing.add(partial(self._write, share))
            if ends or self._unplaced or asyncio.get_running_loop().time() > end:
                return
            most = await self._emit.credit()
            if self._leaving:
                return  # a rebalance that began meanwhile waits for nothing that is not begun
            # What is fetched is not fetched again: it is written, or a placing goes back to it.
            batch = await self._fetch(0, most)

    def _passed(self) -> Batch:
        """Return, without records, the partitions where the client is past more than records.

        Transactions leave marks in a log, those that were aborted also what they wrote, and
        compaction leaves gaps: none of it is a record, and all of it is read.
        """
        if self._leaving or self._unplaced:
            return {}  # what is fetched now may be dropped, and the client is past that too
        return {one: () for one in self._readers if self._position(one) > self._next(one)}

    def _position(self, partition: TopicPartition) -> int:
        """Return the offset that the client reads next, -1 where it has none."""
        subscription = self.consumer._subscription.subscription  # `position()` waits to have one
        assignment = None if subscription is None else subscription.assignment
        state = None if assignment is None else assignment.state_value(partition)
        return state.position if state is not None and state.has_valid_position else -1

    def _share(
        self,
        batch: Batch,
        ends: Mapping[TopicPartition, int],
        handed: Mapping[TopicPartition, Place],
    ) -> _Share:
        """Return what of a batch is behind the ledger and behind what was handed over already."""
        share = _Share([], {})
        for partition, records in batch.items():
            reader = self._readers.get(partition)
            if reader is None:
                continue  # fetched before the partition had its place, or after it was lost
            place = handed.get(partition) or self._ledger.places[broker.key_of(partition)]
            if records and records[0].offset < place.next:
                records = [record for record in records if record.offset >= place.next]
            read_to = ends[partition] if partition in ends else self._position(partition)
            following = max(records[-1].offset + 1 if records else 0, read_to)
            if following > place.next:
                if place.done:
                    records = [one for one in records if not place.is_done(one.offset)]
                share.records.append((reader, records))
                share.places[partition] = place.read_to(following)
        return share

    async def _write(self, share: _Share, before: asyncio.Task[None] | None) -> None:
        """Emit a share with its places, behind the one before it."""
        events = share.events(self._emit.now())
        positions = {broker.key_of(at): to.text() for at, to in share.places.items()}
        await self._emit(events, positions, after=before)
        for partition, place in share.places.items():
            self._ledger.places[broker.key_of(partition)] = place
            if partition in self._readers:
                self._commits.owe(partition, place)
        if self._refusals:
            self._refusals = 0
            log.info("kafka.resumed", trigger=self._trigger.name)

    # ------------------------------------------------------------ where to read

    async def _place(self) -> None:
        """Find where to read on in newly assigned partitions, store it, and go there."""
        generation, partitions = self._generation, set(self._unplaced)
        try:
            found = await self._placing.place(self.consumer, partitions)
            if generation != self._generation:
                return
            for partition in partitions:
                self._go_to(partition)
            placed = self._placing.placed(partitions)
            await self._commits.begin(placed, found)
            await self._placing.told(placed)
        except (IllegalStateError, CommitFailedError):
            return  # the assignment has changed; the new one comes by the listener
        except (Overloaded, JournalFull) as refusal:
            self._back_off(refusal)
            return
        if generation == self._generation:
            self._unplaced -= partitions
            for partition in partitions:
                self._show_lag(partition, found[partition].readable)
            self._emit.up()

    def _go_to(self, partition: TopicPartition) -> None:
        place = self._placed[partition] = self._ledger.places[broker.key_of(partition)]
        self._readers[partition] = self._trigger.reader(
            self._cluster, partition.topic, partition.partition, place.epoch
        )
        self.consumer.seek(partition, place.next)
        if self._paused_until is not None:
            self.consumer.pause(partition)  # the client forgets pauses in a rebalance

    def _next(self, partition: TopicPartition) -> int:
        return self._ledger.places[broker.key_of(partition)].next

    def _rewind(self) -> None:
        """Go back to the ledger everywhere, also for what the client has handed out already."""
        for partition in self._readers:
            with suppress(IllegalStateError):
                self.consumer.seek(partition, self._next(partition))

    # ------------------------------------------------------------ a refusing journal

    def _back_off(self, refusal: Overloaded | JournalFull) -> None:
        """Pause everything for a while and go back to the ledger; polling goes on."""
        first, longest = _REFUSED_SECONDS
        delay = min(first * 2**self._refusals, longest)
        if not self._refusals:
            log.warning("kafka.paused", trigger=self._trigger.name, reason=str(refusal))
        self._refusals = min(self._refusals + 1, 10)
        self._paused_until = asyncio.get_running_loop().time() + delay
        for partition in self._readers:
            with suppress(IllegalStateError):
                self.consumer.pause(partition)
        self._rewind()
        self._emit.show("paused_partitions", len(self._readers))

    def _resume_when_due(self) -> None:
        due = self._paused_until
        if due is None or asyncio.get_running_loop().time() < due:
            return
        self._paused_until = None
        for partition in self._readers:
            with suppress(IllegalStateError):
                self.consumer.resume(partition)
        self._emit.show("paused_partitions", 0)

    # ------------------------------------------------------------ the group

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Let the emits that are on end, commit them, and forget the generation.

        Where order is asked for, what waits is given back first and what runs is waited for: the
        next member begins behind both.
        """
        self._leaving = True
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._idle.wait()
        if revoked:
            await self._commits.tell()
        if revoked and self._emit.keeps_order:
            seconds = self._trigger.max_poll_seconds / 2  # the group waits for so long twice over
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._give_back(seconds)
                    await self._emit.until_ended(list(map(broker.key_of, revoked)), seconds)
        self._generation += 1
        self._show_no_lag(map(broker.key_of, revoked))
        self._readers.clear()
        self._placed.clear()
        self._unplaced.clear()
        self._commits.forget()

    async def _give_back(self, seconds: float) -> None:
        """Give back what waits, where order is asked for, with some time for it."""
        if not self._emit.keeps_order:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._giving_back.give_back(self._placed, self._commits)

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Have the new partitions placed before anything of them is emitted."""
        self._generation += 1
        self._leaving = False
        self._unplaced = set(assigned)
        self._rebalances += 1
        # What reading ended in an error over is still unread, but may be another member's now.
        self._show_no_lag(self._ledger.unread - {broker.key_of(one) for one in assigned})
        self._ledger.unread.clear()
        self._emit.show("rebalances", self._rebalances)
        self._emit.show("partitions", len(assigned))
        self._assigned.set()
        if not assigned:
            self._emit.up()  # another member has them all

    # ------------------------------------------------------------ watching the cluster

    async def _keep_looking(self) -> None:
        """Report lag, and brokers that do not answer, which the client keeps to itself."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._look()
            except TopicGone:
                raise  # begun anew, the trigger waits for it
            except TriggerError as error:
                self._is_down = True
                self._emit.down(str(error))
            except IllegalStateError:
                pass
            else:
                if self._is_down:
                    self._is_down = False
                    self._emit.up()

    async def _look(self) -> None:
        with broker.named("Kafka does not answer"):
            async with asyncio.timeout(broker.MEET_SECONDS / 3):
                topics = await self.consumer.topics()
        gone = set(self._trigger.topics) - topics
        if gone:
            raise TopicGone(f"topic {min(gone)!r} is gone")
        if any(self.consumer.partitions_for_topic(one) is None for one in self._trigger.topics):
            # It went and came back, and the client would not look again for half a minute.
            self.consumer._client.force_metadata_update()
        read_to = self._read_to()
        if not read_to:
            return
        its = await broker.told(self.consumer, read_to)
        ends = await broker.ends(self.consumer, read_to)
        cuts = await self._leaders.cuts(self.consumer, self._leaders.changed(its))
        for partition, (readable, end) in ends.items():
            if partition not in self._readers:
                continue
            self._show_lag(partition, readable)
            place = self._ledger.places[broker.key_of(partition)]
            bounds = Bounds(0, end, None, its[partition].topic, cut=cuts.get(partition))
            if is_anew(place, bounds):  # nothing else may say so
                self._unplaced.add(partition)
        if not self._unplaced:
            await self._leaders.keep(self.consumer, its, read_to)

    def _read_to(self) -> dict[TopicPartition, int]:
        """Return how far each partition is read that has its place."""
        return {one: self._next(one) for one in self._readers if one not in self._unplaced}

    def _show_lag(self, partition: TopicPartition, readable: int) -> None:
        self._emit.lag(broker.key_of(partition), max(readable - self._next(partition), 0))

    def _show_no_lag(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._emit.lag(key, 0)

    def _keys(self) -> set[str]:
        return {broker.key_of(partition) for partition in self._readers}
