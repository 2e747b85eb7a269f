"""Fetches batches of records and writes them to the journal, each with the positions behind it.

A record is written if it lies at or behind the stored position, and the position moves in the same
transaction: so a record that is fetched again is written once. While more is ready, batches follow
each other; each is prepared while the one before it is stored (`writing`). Not here: what a record
becomes (`record`), and what follows when the client cannot read (`consumer`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]  # no types
from aiokafka.errors import (  # type: ignore[import-untyped]  # as above
    CorruptRecordException,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    UnsupportedCodecError,
)

from turnout.service.domain.errors import TriggerError
from turnout.service.domain.event import Event
from turnout.service.domain.event_columns import EventColumns
from turnout.service.domain.trigger import Emitter

from . import broker
from .assignment import Assignment
from .client import reason
from .commits import Commits
from .fetch_notes import FetchNotes
from .pause import Pause
from .positions import Position, Positions, is_another_topic, key_of
from .record import RecordDecoder
from .writing import Writing

Batch = Mapping[TopicPartition, Sequence[Any]]

_TURN_SECONDS = 0.5  # then another member in this process may write

# What one bad record raises. The same call may have read other partitions already.
_UNREADABLE = (CorruptRecordException, UnsupportedCodecError, UnicodeDecodeError, ValueError)


class CannotRead(Exception):
    """Raised when the client cannot read what comes next; its cause says why."""


@dataclass(frozen=True, slots=True)
class _NewRecords:
    """The new records of a batch, and the positions behind them."""

    records: list[tuple[RecordDecoder, Sequence[Any]]]
    positions: dict[TopicPartition, Position]

    def events(self, now: datetime) -> Sequence[Event]:
        """Return the events of the records, in their order: as columns if all fit in."""
        columns = EventColumns()
        if all(decoder.add_to(columns, records, now) for decoder, records in self.records):
            return columns
        return [
            decoder.event(record, now)
            for decoder, records in self.records
            for record in records
            if record.value is not None or decoder.null != "skip"
        ]


class Batches:
    """Reads the assigned partitions into the journal; `idle` is set while nothing is written."""

    def __init__(
        self,
        emit: Emitter,
        consumer: AIOKafkaConsumer,
        assignment: Assignment,
        positions: Positions,
        commits: Commits,
        pause: Pause,
    ) -> None:
        self._emit = emit
        self._consumer = consumer
        self._assignment = assignment
        self._positions = positions
        self._commits = commits
        self._pause = pause
        self._fetched = FetchNotes(consumer._client)
        self.idle = asyncio.Event()
        self.idle.set()

    async def fetch(self, seconds: float) -> Batch:
        """Poll, also while everything is paused: the group removes a member that does not poll.

        Raises `CannotRead` and `TriggerError`.
        """
        batch = await self.poll(seconds, await self._emit.credit())
        return {**self._advanced(), **batch}

    async def poll(self, seconds: float, most: int) -> Batch:
        """Return what the client fetches within `seconds`; raises `CannotRead`, `TriggerError`."""
        try:
            found: Batch = await self._consumer.getmany(
                timeout_ms=int(seconds * 1000), max_records=most
            )
        except NoOffsetForPartitionError:
            return {}  # a partition has no position yet
        except (OffsetOutOfRangeError, *_UNREADABLE) as error:
            raise CannotRead from error
        except KafkaError as error:
            raise TriggerError(f"reading stopped: {reason(error)}") from error
        return found

    def _advanced(self) -> Batch:
        """Return, without records, the partitions where the client has moved on without a record.

        Transaction markers, aborted records and the gaps of compaction are no records, but they are
        read, and the position moves past them.
        """
        assignment = self._assignment
        if assignment.leaving or assignment.without_start:
            return {}  # what is fetched now may be dropped, and must be read again
        return {
            one: ()
            for one in assignment.decoders
            if assignment.fetched_to(one) > assignment.position(one).next
        }

    async def write(self, batch: Batch, ends: Mapping[TopicPartition, int] | None = None) -> None:
        """Write a batch to the journal, and the batches that are ready behind it.

        `ends` comes with raw records and maps each partition to the offset behind them. Raises what
        an emit and `fetch` do.
        """
        try:
            async with Writing(self._positions.lock) as writing:
                await self._fill(writing, batch, ends or {})
        finally:
            self.idle.set()

    async def _fill(
        self, writing: Writing, batch: Batch, ends: Mapping[TopicPartition, int]
    ) -> None:
        """Write a batch, and go on while more are ready."""
        assignment, submitted = self._assignment, dict[TopicPartition, Position]()
        end = asyncio.get_running_loop().time() + _TURN_SECONDS
        while batch and not assignment.leaving:
            fresh = self._new_records(batch, ends, submitted)
            if not await self._continue_the_log(fresh, submitted):
                return
            if fresh.positions:
                submitted |= fresh.positions
                self.idle.clear()
                await writing.add(partial(self._write, fresh))
            if ends or assignment.without_start or asyncio.get_running_loop().time() > end:
                return
            most = await self._emit.credit()
            if assignment.leaving:
                return  # a rebalance began meanwhile and does not wait for this
            # What is fetched now must be written: it is not fetched again.
            batch = await self.poll(0, most)

    def _new_records(
        self,
        batch: Batch,
        ends: Mapping[TopicPartition, int],
        submitted: Mapping[TopicPartition, Position],
    ) -> _NewRecords:
        """Return what of a batch is behind the stored positions and behind what is submitted."""
        fresh = _NewRecords([], {})
        for partition, records in batch.items():
            decoder = self._assignment.decoders.get(partition)
            if decoder is None:
                continue  # its start is not known yet, or it is lost
            position = submitted.get(partition) or self._assignment.position(partition)
            if records and records[0].offset < position.next:
                records = [record for record in records if record.offset >= position.next]
            read_to = ends[partition] if ends else self._assignment.fetched_to(partition)
            following = max(records[-1].offset + 1 if records else 0, read_to)
            if following > position.next:
                if position.done:
                    records = [one for one in records if not position.is_done(one.offset)]
                fresh.records.append((decoder, records))
                leader_epoch = self._fetched.epoch_at(partition, following - 1)
                fresh.positions[partition] = position.read_to(following, leader_epoch)
        return fresh

    async def _continue_the_log(
        self, fresh: _NewRecords, submitted: Mapping[TopicPartition, Position]
    ) -> bool:
        """Whether new records follow those that were read before.

        They do not if a later leader wrote them behind a cut, or if the topic was recreated: then
        where to read on is found anew. Asked only after a failed fetch or where the leader changed.
        """
        doubtful = {}
        for partition, position in fresh.positions.items():
            before = submitted.get(partition) or self._assignment.position(partition)
            changed = -1 < before.leader_epoch != position.leader_epoch
            if changed or partition in self._fetched.interrupted:
                doubtful[partition] = before
        if not doubtful:
            return True
        generation = self._assignment.generation
        its = await broker.identities(self._consumer, doubtful)
        cuts = await broker.cuts(self._consumer, doubtful)
        if generation != self._assignment.generation or self._assignment.leaving:
            return False
        self._fetched.interrupted -= doubtful.keys()
        others = {
            one
            for one, before in doubtful.items()
            if one in cuts or is_another_topic(before, its[one].topic)
        }
        self._assignment.find_start(others)
        if others:
            self._assignment.rewind()
        return not others

    async def _write(self, fresh: _NewRecords, before: asyncio.Task[None] | None) -> None:
        """Emit records with their positions, after the batch before."""
        events = fresh.events(self._emit.now())
        positions = {key_of(at): to.text() for at, to in fresh.positions.items()}
        await self._emit(events, positions, after=before)
        self._pause.accepted()
        for partition, position in fresh.positions.items():
            self._positions.partitions[key_of(partition)] = position
            if partition in self._assignment.decoders:
                self._commits.note(partition, position)
