"""One consumer's life in its group: place, fetch, emit, commit, hand back.

What is read is emitted with the new places in one transaction, and only then is the offset handed
to Kafka: `committed <= journaled` at every moment, also across a rebalance, which ends with the
last emit answered and committed. Handlers are never waited for: the journal is the queue. When the
journal refuses, partitions pause, reading goes back to the ledger and polling goes on, so that the
group keeps its member.

The client's assignment changes under our feet (its rebalances run in a task of their own), so
everything here is of one *generation* and counts for nothing in the next. Not here: what a record
becomes (`record`), where to begin (`ledger`), what the broker is asked (`broker`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
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

from turnout.service.errors import JournalFull, Overloaded, TriggerError
from turnout.service.event import Event
from turnout.service.logs import get_logger
from turnout.service.trigger import Emitter

from . import broker
from .ledger import Bounds, Ledger, Place, Topic, ledger_of, read_topic, settle
from .record import Reader
from .salvage import salvage

if TYPE_CHECKING:
    from . import KafkaTrigger

log = get_logger("turnout.triggers")

Batch = Mapping[TopicPartition, Sequence[Any]]

MAX_RECORDS = 2000
"""Records of one transaction: more are hardly faster, and others wait for the loop meanwhile."""

POLL_SECONDS = 0.25
LOOK_SECONDS = 2.0
COMMIT_SECONDS = 0.2
DRAIN_SECONDS = 5.0
_REFUSED_SECONDS = (0.2, 5.0)
_SECOND_LOOKS = 2

# What one bad record raises, out of a call that has read others of other partitions by then.
_UNREADABLE = (CorruptRecordException, UnsupportedCodecError, UnicodeDecodeError, ValueError)


class TopicGone(TriggerError):
    """Raised when a topic of the trigger does not exist any more."""


class Reading(ConsumerRebalanceListener):  # type: ignore[misc]  # the client carries no types
    """Reads the partitions the group gives this member, until cancelled."""

    def __init__(
        self, trigger: KafkaTrigger, emit: Emitter, cluster: str, topics: Mapping[str, int]
    ) -> None:
        self._trigger = trigger
        self._emit = emit
        self._cluster = cluster
        self._topics = topics
        self._ledger: Ledger = ledger_of(emit)
        self._generation = 0
        self._rebalances = 0
        self._unplaced: set[TopicPartition] = set()
        self._readers: dict[TopicPartition, Reader] = {}
        self._to_commit: dict[TopicPartition, int] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._assigned = asyncio.Event()
        self._commit_wanted = asyncio.Event()
        self._paused_until: float | None = None
        self._refusals = 0
        self.consumer: AIOKafkaConsumer = None

    async def run(self, connection: Mapping[str, Any]) -> None:
        """Join the group and read; an error of the cluster is a `TriggerError`."""
        options = self._trigger.consumer_options()
        async with broker.consumer(connection, **options) as self.consumer:
            self._trigger.subscribe(self.consumer, self)
            with broker.named("cannot join the group"):
                await broker.started(self.consumer)
            await self._assigned.wait()
            try:
                async with asyncio.TaskGroup() as tasks:
                    beside = [
                        tasks.create_task(self._keep_committing()),
                        tasks.create_task(self._keep_looking()),
                    ]
                    try:
                        await self._read()
                    finally:
                        for task in beside:
                            task.cancel()
            except BaseExceptionGroup as several:
                raise several.exceptions[0] from None
            finally:
                await self._last_commit()

    # ------------------------------------------------------------ the loop

    async def _read(self) -> None:
        while True:
            if self._unplaced:
                await self._place()
            self._resume_when_due()
            batch = await self._fetch()
            if batch:
                await self._take(batch, {})

    async def _fetch(self) -> Batch:
        """Poll, also while everything is paused: a member that does not poll is thrown out."""
        try:
            found: Batch = await self.consumer.getmany(
                timeout_ms=int(POLL_SECONDS * 1000), max_records=MAX_RECORDS
            )
        except NoOffsetForPartitionError:
            return {}  # of a partition that has no place yet
        except OffsetOutOfRangeError:
            self._rewind()
            self._unplaced |= set(self._readers)
        except _UNREADABLE as error:
            self._rewind()
            await self._salvage(error)
        except KafkaError as error:
            raise TriggerError(f"reading stopped: {broker.reason(error)}") from error
        else:
            return found
        return {}

    async def _salvage(self, error: Exception) -> None:
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
            raise TriggerError(f"reading stopped: {broker.reason(error)}") from error
        log.warning("kafka.record_unreadable", trigger=self._trigger.name, error=str(error))

    async def _take(self, batch: Batch, ends: Mapping[TopicPartition, int]) -> None:
        """Emit a batch with the places behind it; `ends` comes with salvaged records."""
        async with self._ledger.lock:
            events, places = self._events(batch, ends)
            if not places:
                return
            self._idle.clear()
            try:
                await self._emit(
                    events, {broker.key_of(at): to.text() for at, to in places.items()}
                )
                for partition, place in places.items():
                    self._ledger.places[broker.key_of(partition)] = place
                    if partition in self._readers:
                        self._to_commit[partition] = place.next
            except (Overloaded, JournalFull) as refusal:
                self._back_off(refusal)
                return
            finally:
                self._idle.set()
        self._refusals = 0
        self._commit_wanted.set()

    def _events(
        self, batch: Batch, ends: Mapping[TopicPartition, int]
    ) -> tuple[list[Event], dict[TopicPartition, Place]]:
        """Return the events of records not seen yet, and the places behind them."""
        now = self._emit.now()
        events: list[Event] = []
        places = {}
        for partition, records in batch.items():
            reader = self._readers.get(partition)
            if reader is None:
                continue  # fetched before the partition had its place, or after it was lost
            place = self._ledger.places[broker.key_of(partition)]
            following = place.next
            skips_null = reader.null == "skip"
            for record in records:
                if record.offset < following:
                    continue
                following = record.offset + 1
                if skips_null and record.value is None:
                    continue
                events.append(reader.event(record, now, record.error if ends else None))
            following = max(following, ends.get(partition, 0))
            if following > place.next:
                places[partition] = Place(following, place.epoch)
        return events, places

    # ------------------------------------------------------------ where to read

    async def _place(self) -> None:
        """Find where to read on in newly assigned partitions, store it, and go there."""
        generation, partitions = self._generation, set(self._unplaced)
        try:
            async with self._ledger.lock:
                stored = await self._emit.positions()
                self._ledger.load(stored)
                found = await self._bounds(partitions)
                fresh = await self._settle(stored, found)
                if fresh:
                    await self._emit([], fresh)
                    self._ledger.load(fresh)
            if generation != self._generation:
                return
            for partition in partitions:
                self._go_to(partition)
            await self._commit_back(found)
        except (IllegalStateError, CommitFailedError):
            return  # the assignment has changed; the new one comes by the listener
        except (Overloaded, JournalFull) as refusal:
            self._back_off(refusal)
            await asyncio.sleep(POLL_SECONDS)
            return
        if generation == self._generation:
            self._unplaced -= partitions
            self._emit.up()

    async def _bounds(self, partitions: set[TopicPartition]) -> dict[TopicPartition, Bounds]:
        """Ask for bounds; an end below the ledger is believed only when it stays there.

        A broker that has just become leader may be short of the newest records for a moment, and
        a topic made anew is read again from its start: not on one word.
        """
        for _ in range(_SECOND_LOOKS):
            found = await broker.bounds(self.consumer, partitions)
            places = {one: self._ledger.places.get(broker.key_of(one)) for one in found}
            if all(at is None or at.next <= found[one].end for one, at in places.items()):
                return found
            await asyncio.sleep(1)
        return await broker.bounds(self.consumer, partitions)

    async def _settle(
        self, stored: Mapping[str, str], found: Mapping[TopicPartition, Bounds]
    ) -> dict[str, str]:
        """Return the positions to store before the first fetch; logs what was not as expected."""
        fresh: dict[str, str] = {}
        begins = not any("/" in key for key in stored)
        for topic in {partition.topic for partition in found}:
            known = read_topic(stored.get(topic))
            if known is None:
                count = self._topics.get(topic) or _count(self.consumer, topic)
                fresh[topic] = Topic(self._cluster, count if begins else 0).text()
            elif known.cluster != self._cluster:
                raise TriggerError(
                    f"the positions of topic {topic} are of cluster {known.cluster}, and this is "
                    f"{self._cluster}: say where to read on with "
                    f"`turnout trigger seek {self._trigger.name!r} --to start|end --rerun`"
                )
        firsts = await self._firsts({**stored, **fresh}, found)
        for partition, limits in found.items():
            key = broker.key_of(partition)
            before = self._ledger.places.get(key)
            settled = settle(before, limits, firsts.get(partition, limits.first))
            if settled.place != before:
                fresh[key] = settled.place.text()
            if settled.alarm is not None:
                log.error(
                    settled.alarm,
                    trigger=self._trigger.name,
                    partition=key,
                    ledger=None if before is None else before.next,
                    first=limits.first,
                    end=limits.end,
                    reads_from=settled.place.next,
                    epoch=settled.place.epoch,
                    lost=settled.lost,
                )
        return fresh

    async def _firsts(
        self, stored: Mapping[str, str], found: Mapping[TopicPartition, Bounds]
    ) -> dict[TopicPartition, int]:
        """Return where `start=` puts partitions without a place; new ones begin at their start."""
        old = {}
        for partition, limits in found.items():
            topic = read_topic(stored.get(partition.topic))
            if topic is not None and partition.partition < topic.partitions:
                old[partition] = limits
        start = self._trigger.start
        if start == "earliest":
            return {}
        if isinstance(start, datetime):
            unknown = {at: it for at, it in old.items() if broker.key_of(at) not in stored}
            return await broker.offsets_at(self.consumer, start, unknown) if unknown else {}
        return {partition: limits.end for partition, limits in old.items()}

    def _go_to(self, partition: TopicPartition) -> None:
        place = self._ledger.places[broker.key_of(partition)]
        self._readers[partition] = self._trigger.reader(
            self._cluster, partition.topic, partition.partition, place.epoch
        )
        self.consumer.seek(partition, place.next)
        if self._paused_until is not None:
            self.consumer.pause(partition)  # the client forgets pauses in a rebalance

    async def _commit_back(self, found: Mapping[TopicPartition, Bounds]) -> None:
        """Tell Kafka the places: it then forgets an offset above a sought one."""
        told = {one: self._next(one) for one in found if found[one].committed != self._next(one)}
        if told:
            try:
                async with asyncio.timeout(broker.MEET_SECONDS):
                    await self.consumer.commit(told)
            except CommitFailedError:
                raise
            except (KafkaError, TimeoutError) as error:
                raise TriggerError(f"cannot commit: {broker.reason(error)}") from error
        self._committed |= told
        settled = {}
        for partition in found:
            key = broker.key_of(partition)
            place = self._ledger.places[key]
            if place.sought:
                self._ledger.places[key] = Place(place.next, place.epoch)
                settled[key] = self._ledger.places[key].text()
        if settled:
            await self._emit([], settled)

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
        self._refusals = min(self._refusals + 1, 10)
        if self._paused_until is None:
            log.warning("kafka.paused", trigger=self._trigger.name, reason=str(refusal))
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

    # ------------------------------------------------------------ telling Kafka

    async def _keep_committing(self) -> None:
        while True:
            await self._commit_wanted.wait()
            self._commit_wanted.clear()
            await self._commit()
            await asyncio.sleep(COMMIT_SECONDS)

    async def _commit(self) -> None:
        """Hand journaled offsets to Kafka; never a lower one than before in this generation."""
        generation = self._generation
        assigned = self.consumer.assignment()
        told = {
            partition: offset
            for partition, offset in self._to_commit.items()
            if partition in assigned and offset > self._committed.get(partition, -1)
        }
        if not told:
            return
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                await self.consumer.commit(told)
        except (CommitFailedError, IllegalStateError):
            return  # another member has them now, and the ledger knows
        except (KafkaError, TimeoutError) as error:
            # Tried again with the next one; until then Kafka knows less than the ledger does.
            self._commit_wanted.set()
            log.debug("kafka.commit_failed", trigger=self._trigger.name, error=str(error))
            return
        if generation == self._generation:
            self._committed |= told

    async def _last_commit(self) -> None:
        with suppress(TimeoutError, KafkaError):
            async with asyncio.timeout(COMMIT_SECONDS):
                await self._commit()

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Let the emit that is on end, commit it, and forget the generation."""
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._idle.wait()
        if revoked:
            await self._commit()
        self._generation += 1
        for partition in revoked:
            self._emit.lag(broker.key_of(partition), 0)
        self._readers.clear()
        self._unplaced.clear()
        self._to_commit.clear()
        self._committed.clear()

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Have the new partitions placed before anything of them is emitted."""
        self._generation += 1
        self._unplaced = set(assigned)
        self._rebalances += 1
        self._emit.show("rebalances", self._rebalances)
        self._emit.show("partitions", len(assigned))
        self._assigned.set()
        if not assigned:
            self._emit.up()  # another member has them all

    # ------------------------------------------------------------ watching the cluster

    async def _keep_looking(self) -> None:
        """Report lag, and brokers that do not answer, which the client keeps to itself."""
        was_down = False
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._look()
            except TopicGone:
                raise  # begun anew, the trigger waits for it
            except TriggerError as error:
                if not was_down:
                    log.warning("trigger.down", trigger=self._trigger.name, error=str(error))
                was_down = True
                self._emit.down(str(error))
            except IllegalStateError:
                pass
            else:
                if was_down:
                    log.info("trigger.up", trigger=self._trigger.name)
                    was_down = False
                    self._emit.up()

    async def _look(self) -> None:
        with broker.named("Kafka does not answer"):
            async with asyncio.timeout(broker.MEET_SECONDS / 3):
                topics = await self.consumer.topics()
        gone = set(self._trigger.topics) - topics
        if gone:
            raise TopicGone(f"topic {min(gone)!r} is gone")
        partitions = list(self._readers)
        if not partitions:
            return
        ends = await broker.ends(self.consumer, partitions)
        for partition, end in ends.items():
            if partition not in self._readers:
                continue
            behind = end - self._next(partition)
            self._emit.lag(broker.key_of(partition), max(behind, 0))
            if behind < 0:  # the log ends below the ledger: not every broker says so by itself
                self._unplaced.add(partition)


def _count(consumer: AIOKafkaConsumer, topic: str) -> int:
    return len(consumer.partitions_for_topic(topic) or ())
