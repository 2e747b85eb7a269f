"""Giving back, with a partition, what was journaled of it and no run has begun.

Records are journaled ahead of being run. A member that got a partition now would run its records
beside earlier ones that wait here, also of the same key. So where order is asked for
(`ordered_by`), what waits goes along: Kafka is told to go back to the first of it, the rows go out
of the journal with their identity, and the next member reads them again. What has begun behind
that first one is committed along as offsets that are done. In that order: Kafka refusing leaves
all as it was, and a kill in between runs records twice, but loses none. Not here: waiting for what
runs (`reading`).
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

from turnout.service.domain.errors import JournalFull, Overloaded, TriggerError
from turnout.service.domain.trigger import Backlog, Emitter, HandBack
from turnout.service.telemetry.logs import get_logger

from . import broker
from .commits import Commits
from .positions import Ledger, Place, Spans, both

log = get_logger("turnout.triggers")

MARK_BYTES = 3_500
"""How long the offsets that are done may be in writing; Kafka takes 4096 bytes of words in all."""


class Given(NamedTuple):
    """What of one partition is given back: its place then, and the seqs of the events."""

    place: Place
    seqs: list[int]


@dataclass(frozen=True, slots=True)
class GivingBack:
    """Gives back what waits of a trigger's partitions."""

    trigger: str
    emit: Emitter
    ledger: Ledger
    cluster: str

    async def give_back(self, placed: Mapping[TopicPartition, Place], commits: Commits) -> None:
        """Give back what waits of partitions that this member is about to lose.

        `placed` says where it began with each: what is below came by another's hands.
        """
        async with self.ledger.lock, self.emit.handing_back() as hand_back:
            given = self._given(placed, await hand_back.backlog())
            if not given:
                return
            try:
                await commits.hand_back({one: it.place for one, it in given.items()})
            except (CommitFailedError, IllegalStateError, TriggerError) as error:
                # They are lost already, or nobody answers: what waits runs here, as accepted.
                log.warning("kafka.not_handed_back", trigger=self.trigger, error=str(error))
                return
            withdrawal = self._withdraw(hand_back, given, commits)
            withdrawing = asyncio.get_running_loop().create_task(withdrawal)
            try:
                await asyncio.shield(withdrawing)
            finally:
                await asyncio.wait([withdrawing])  # Kafka is told: a cancel comes too late

    async def _withdraw(
        self, hand_back: HandBack, given: dict[TopicPartition, Given], commits: Commits
    ) -> None:
        before = {one: self.ledger.places[broker.key_of(one)] for one in given}
        seqs = sorted(seq for it in given.values() for seq in it.seqs)
        places = {broker.key_of(one): it.place for one, it in given.items()}
        try:
            await hand_back.withdraw(seqs, {key: place.text() for key, place in places.items()})
        except (JournalFull, Overloaded) as refusal:
            log.warning("kafka.not_handed_back", trigger=self.trigger, error=str(refusal))
            await commits.hand_back(before)
            return
        self.ledger.places |= places
        log.info("kafka.handed_back", trigger=self.trigger, records=len(seqs))

    def _given(
        self, placed: Mapping[TopicPartition, Place], backlog: Backlog
    ) -> dict[TopicPartition, Given]:
        waiting: dict[TopicPartition, dict[int, int]] = {one: {} for one in placed}
        begun: dict[TopicPartition, list[int]] = {one: [] for one in placed}
        named = {
            f"{self.cluster}/{one.topic}/{place.epoch}/{one.partition}": one
            for one, place in placed.items()
        }
        for name, seq in backlog.waiting.items():
            partition, _, offset = name.rpartition("/")
            if partition in named:
                waiting[named[partition]][int(offset)] = seq
        for name in backlog.begun:
            partition, _, offset = name.rpartition("/")
            if partition in named:
                begun[named[partition]].append(int(offset))
        found = {one: given(place, waiting[one], begun[one]) for one, place in placed.items()}
        return {one: it for one, it in found.items() if it is not None}


def given(placed: Place, waiting: Mapping[int, int], begun: Iterable[int]) -> Given | None:
    """Return what of a partition is given back: all that waits, as far as words reach for the rest.

    `waiting` maps offsets to seqs. Offsets that are neither waiting nor begun are no matter:
    nothing of them would run.
    """
    offsets = sorted(offset for offset in waiting if offset >= placed.next)
    if not offsets:
        return None
    done = both(placed.done, tuple((offset, offset) for offset in begun))
    first, spans = _said(offsets, done, MARK_BYTES)
    back = replace(placed, next=first, sought=False, done=spans)
    return Given(back, [waiting[offset] for offset in offsets if offset >= first])


def _said(waiting: Sequence[int], done: Spans, most: int) -> tuple[int, Spans]:
    """Return the lowest waiting offset from which on what is done can be said, and what is."""
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
