"""How far a partition is read: the stored place, and where reading goes on after a restart.

The place of a partition is written in the transaction of the records before it, so it never lies:
nothing below it is emitted again, nothing at or above it was. It is what makes a record one event,
and the journal needs no other guard. Kafka's committed offset only follows it. `settle` decides
where to read on, as a pure function. Not here: reading, and asking the broker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import orjson

from turnout.service.errors import TriggerError
from turnout.service.trigger import Emitter


@dataclass(frozen=True, slots=True)
class Place:
    """The offset to read next, in the epoch of the partition's life (from 1).

    `sought` marks a place an operator or an alarm chose below Kafka's committed offset: that one
    counts for nothing until it has been moved back too.
    """

    next: int
    epoch: int = 1
    sought: bool = False

    def text(self) -> str:
        """Return what is stored."""
        if self.sought:
            return f'{{"next": {self.next}, "epoch": {self.epoch}, "sought": true}}'
        return f'{{"next": {self.next}, "epoch": {self.epoch}}}'


def read_place(text: str | None) -> Place | None:
    """Read back a stored place; raises `TriggerError` for what is none."""
    if text is None:
        return None
    try:
        found = orjson.loads(text)
        return Place(int(found["next"]), int(found["epoch"]), bool(found.get("sought", False)))
    except (ValueError, KeyError, TypeError):
        raise TriggerError(f"the stored position {text!r} is no place in a partition") from None


@dataclass(frozen=True, slots=True)
class Topic:
    """What was known of a topic when the trigger first met it: its cluster and partitions.

    A partition added later is read from its first record, whatever `start=` says: nothing in it is
    older than the trigger.
    """

    cluster: str
    partitions: int

    def text(self) -> str:
        """Return what is stored."""
        return orjson.dumps({"cluster": self.cluster, "partitions": self.partitions}).decode()


def read_topic(text: str | None) -> Topic | None:
    """Read back what is stored of a topic; raises `TriggerError` for what is none."""
    if text is None:
        return None
    try:
        found = orjson.loads(text)
        return Topic(str(found["cluster"]), int(found["partitions"]))
    except (ValueError, KeyError, TypeError):
        raise TriggerError(f"the stored position {text!r} describes no topic") from None


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the broker says of a partition: first offset, end, and the group's committed offset."""

    first: int
    end: int
    committed: int | None


@dataclass(frozen=True, slots=True)
class Settled:
    """Where to read on, and what an operator must hear about it (`alarm` is a log event)."""

    place: Place
    alarm: str | None = None
    lost: int = 0


def settle(stored: Place | None, bounds: Bounds, first_place: int) -> Settled:
    """Return where to read on; `first_place` is where a partition never read before begins.

    `max(ledger, committed)` in the ordinary case. An end below the ledger means that the topic was
    deleted and made again: a new epoch, from its first record. A first offset above the ledger
    means that retention took records nobody read.
    """
    if stored is None:
        place = Place(first_place if bounds.committed is None else bounds.committed)
        if place.next > bounds.end:  # the group's offset is of an earlier topic of this name
            return Settled(Place(bounds.first, sought=True), "kafka.offset_past_end")
        return Settled(place)
    if stored.next > bounds.end:
        return Settled(Place(bounds.first, stored.epoch + 1, sought=True), "kafka.topic_recreated")
    place = stored
    # A committed offset past the end is of an earlier topic; it says nothing of this one.
    committed = -1 if stored.sought or bounds.committed is None else bounds.committed
    if stored.next < committed <= bounds.end:
        place = replace(stored, next=committed)
    if place.next < bounds.first:
        lost = bounds.first - place.next
        return Settled(replace(place, next=bounds.first), "kafka.records_expired", lost)
    return Settled(place)


class Ledger:
    """The places of one trigger in this process, shared by all who read for it.

    Whoever emits holds `lock` from filtering what is known until the journal has answered.
    """

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.places: dict[str, Place] = {}

    def load(self, stored: Mapping[str, str]) -> None:
        """Take over what the journal holds."""
        for partition, text in stored.items():
            if "/" in partition:
                place = read_place(text)
                if place is not None:
                    self.places[partition] = place


_ledgers: WeakKeyDictionary[Any, Ledger] = WeakKeyDictionary()


def ledger_of(emit: Emitter) -> Ledger:
    """Return the one ledger of a trigger's emitter."""
    return _ledgers.setdefault(emit, Ledger())
