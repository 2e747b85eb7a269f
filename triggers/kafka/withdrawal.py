"""Hands back, with a partition, the records that are journaled and whose runs have not begun.

Records are journaled ahead of being run. If a partition simply changed hands, its next member would
run records beside earlier ones of the same key that still wait here. So where order is asked for
(`ordered_by`), what waits goes along: Kafka's committed offset goes back to the first of it, the
rows leave the journal with their identity, and the next member reads the records again. Offsets
behind that one whose runs have begun are committed along as done. The order of the steps matters:
if Kafka refuses, nothing has changed, and a kill in between runs records twice but loses none. Not
here: waiting for what runs (`consumer`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from aiokafka import TopicPartition  # type: ignore[import-untyped]  # no types
from aiokafka.errors import (  # type: ignore[import-untyped]  # as above
    CommitFailedError,
    IllegalStateError,
)

from turnout.service.domain.errors import (
    JournalFull,
    Overloaded,
    PositionsMoved,
    TriggerError,
)
from turnout.service.domain.trigger import Backlog, Emitter, HandBack
from turnout.service.telemetry.logs import get_logger

from .commits import Commits
from .positions import Position, Positions, Spans, key_of, union

log = get_logger("turnout.triggers")

METADATA_BYTES = 3_500
"""How many bytes the done offsets may take; Kafka allows 4096 bytes of metadata in all."""


class PartitionWithdrawal(NamedTuple):
    """What is handed back of one partition: its position then, and the seqs of the events."""

    position: Position
    seqs: list[int]


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """Hands back the waiting records of a trigger's partitions."""

    trigger: str
    emit: Emitter
    positions: Positions
    cluster: str

    async def withdraw(self, began_at: Mapping[TopicPartition, Position], commits: Commits) -> None:
        """Hand back what waits of the partitions that this member is about to lose.

        `began_at` says where this member began; it hands back nothing below that.
        """
        async with self.positions.lock, self.emit.handing_back() as hand_back:
            plans = self._plan(began_at, await hand_back.backlog())
            if not plans:
                return
            try:
                await commits.hand_back({one: it.position for one, it in plans.items()})
            except (CommitFailedError, IllegalStateError, TriggerError) as error:
                # Lost already, or no answer: what waits runs here, as it was accepted.
                log.warning("kafka.not_handed_back", trigger=self.trigger, error=str(error))
                return
            withdrawal = self._remove(hand_back, plans, commits)
            withdrawing = asyncio.get_running_loop().create_task(withdrawal)
            try:
                await asyncio.shield(withdrawing)
            finally:
                await asyncio.wait([withdrawing])  # the commit is done: it is too late to cancel

    async def _remove(
        self,
        hand_back: HandBack,
        plans: dict[TopicPartition, PartitionWithdrawal],
        commits: Commits,
    ) -> None:
        before = {one: self.positions.partitions[key_of(one)] for one in plans}
        seqs = sorted(seq for it in plans.values() for seq in it.seqs)
        positions = {key_of(one): it.position for one, it in plans.items()}
        try:
            await hand_back.withdraw(
                seqs, {key: position.text() for key, position in positions.items()}
            )
        except (JournalFull, Overloaded, PositionsMoved) as refusal:
            log.warning("kafka.not_handed_back", trigger=self.trigger, error=str(refusal))
            await commits.hand_back(before)
            return
        self.positions.partitions |= positions
        log.info("kafka.handed_back", trigger=self.trigger, records=len(seqs))

    def _plan(
        self, began_at: Mapping[TopicPartition, Position], backlog: Backlog
    ) -> dict[TopicPartition, PartitionWithdrawal]:
        waiting: dict[TopicPartition, dict[int, int]] = {one: {} for one in began_at}
        begun: dict[TopicPartition, list[int]] = {one: [] for one in began_at}
        named = {
            f"{self.cluster}/{one.topic}/{position.epoch}/{one.partition}": one
            for one, position in began_at.items()
        }
        for name, seq in backlog.waiting.items():
            partition, _, offset = name.rpartition("/")
            if partition in named:
                waiting[named[partition]][int(offset)] = seq
        for name in backlog.begun:
            partition, _, offset = name.rpartition("/")
            if partition in named:
                begun[named[partition]].append(int(offset))
        found = {
            one: plan_partition(position, waiting[one], begun[one])
            for one, position in began_at.items()
        }
        return {one: it for one, it in found.items() if it is not None}


def plan_partition(
    began_at: Position, waiting: Mapping[int, int], begun: Iterable[int]
) -> PartitionWithdrawal | None:
    """Return what is handed back of a partition: all that waits, if the metadata can hold the rest.

    `waiting` maps offsets to seqs. Offsets that neither wait nor have begun do not matter: they
    would run nothing.
    """
    offsets = sorted(offset for offset in waiting if offset >= began_at.next)
    if not offsets:
        return None
    done = union(began_at.done, tuple((offset, offset) for offset in begun))
    first, spans = _fitting(offsets, done, METADATA_BYTES)
    back = replace(began_at, next=first, sought=False, done=spans, leader_epoch=-1)
    return PartitionWithdrawal(back, [waiting[offset] for offset in offsets if offset >= first])


def _fitting(waiting: Sequence[int], done: Spans, most: int) -> tuple[int, Spans]:
    """Return the lowest waiting offset behind which all done spans fit, and those spans."""
    lowest, spans, size = waiting[-1], list[tuple[int, int]](), 0
    left = list(done)
    for offset in reversed(waiting):
        between = []
        while left and left[-1][1] > offset:
            between.append(left.pop())
        if between:
            first, last = between[-1][0], between[0][1]
            size += len(f"{last - offset}+{last - first + 1},")
            if size > most and spans:
                break
            spans.append((first, last))
        lowest = offset
    return lowest, tuple(reversed(spans))
