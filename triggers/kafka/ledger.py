"""How far a partition is read: the stored place, and where reading goes on after a restart.

The place of a partition is written in the transaction of the records before it, so it never lies:
nothing below it is emitted again, nothing at or above it was. It is what makes a record one event,
and the journal needs no other guard. Kafka's committed offset only follows it. `settle` decides
where to read on, as a pure function: a place counts in the topic it is of, which its id tells, and
in no other one of that name. Not here: reading, and asking the broker.
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
    counts for nothing until it has been moved back too. `topic` is the id of the topic, empty
    where the broker knows none.
    """

    next: int
    epoch: int = 1
    sought: bool = False
    topic: str = ""

    def text(self) -> str:
        """Return what is stored."""
        topic = f', "topic": "{self.topic}"' if self.topic else ""
        sought = ', "sought": true' if self.sought else ""
        return f'{{"next": {self.next}, "epoch": {self.epoch}{topic}{sought}}}'


def read_place(text: str | None) -> Place | None:
    """Read back a stored place; raises `TriggerError` for what is none."""
    if text is None:
        return None
    try:
        found = orjson.loads(text)
        return Place(
            int(found["next"]),
            int(found["epoch"]),
            bool(found.get("sought", False)),
            str(found.get("topic", "")),
        )
    except (ValueError, KeyError, TypeError):
        raise TriggerError(f"the stored position {text!r} is no place in a partition") from None


@dataclass(frozen=True, slots=True)
class Topic:
    """What was known of a topic when the trigger first met it: its cluster, partitions and id.

    A partition added later is read from its first record, whatever `start=` says, and so is each
    of a topic made anew: nothing in it is older than the trigger.
    """

    cluster: str
    partitions: int
    id: str = ""

    def text(self) -> str:
        """Return what is stored."""
        told = {"cluster": self.cluster, "partitions": self.partitions, "id": self.id}
        return orjson.dumps(told).decode()


def read_topic(text: str | None) -> Topic | None:
    """Read back what is stored of a topic; raises `TriggerError` for what is none."""
    if text is None:
        return None
    try:
        found = orjson.loads(text)
        return Topic(str(found["cluster"]), int(found["partitions"]), str(found.get("id", "")))
    except (ValueError, KeyError, TypeError):
        raise TriggerError(f"the stored position {text!r} describes no topic") from None


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the broker says of a partition: first offset, end, and the group's committed offset.

    `topic` is the id of its topic, or empty. An offset that is known to be of another topic of this
    name is not `committed`, and one that is known to be of this very topic is `vouched` for.
    """

    first: int
    end: int
    committed: int | None
    topic: str = ""
    vouched: bool = False


@dataclass(frozen=True, slots=True)
class Settled:
    """Where to read on, and what an operator must hear about it (`alarm` is a log event)."""

    place: Place
    alarm: str | None = None
    lost: int = 0


def settle(stored: Place | None, bounds: Bounds, first_place: int) -> Settled:
    """Return where to read on; `first_place` is where a partition never read before begins.

    `max(ledger, committed)` in the ordinary case. A topic made anew has a new epoch, and is read
    from its first record, or from where a member with another journal has read it to; so is one
    whose brokers lost records that were read, as nobody knows how many. A first offset above the
    ledger means that retention took records nobody read.
    """
    if stored is None:
        begins = first_place if bounds.committed is None else bounds.committed
        if begins > bounds.end:  # the group's offset is of an earlier topic of this name
            place = Place(bounds.first, sought=True, topic=bounds.topic)
            return Settled(place, "kafka.offset_past_end")
        return Settled(Place(begins, topic=bounds.topic))
    if is_anew(stored, bounds):
        place = Place(bounds.first, stored.epoch + 1, sought=True, topic=bounds.topic)
        read_to = read_by_others(stored, bounds)
        if read_to is not None:
            place = replace(place, next=max(read_to, bounds.first), sought=False)
        is_same = bool(stored.topic) and stored.topic == bounds.topic
        return Settled(place, "kafka.log_cut" if is_same else "kafka.topic_recreated")
    place = replace(stored, topic=bounds.topic or stored.topic)
    # A committed offset past the end is of an earlier topic; it says nothing of this one.
    committed = -1 if stored.sought or bounds.committed is None else bounds.committed
    if stored.next < committed <= bounds.end:
        place = replace(place, next=committed)
    if place.next < bounds.first:
        lost = bounds.first - place.next
        return Settled(replace(place, next=bounds.first), "kafka.records_expired", lost)
    return Settled(place)


def is_anew(stored: Place, bounds: Bounds) -> bool:
    """Whether the topic is not the one that was read: it has another id, or ends too early."""
    return _is_another(stored, bounds) or stored.next > bounds.end


def read_by_others(stored: Place, bounds: Bounds) -> int | None:
    """Return where in a topic made anew the group is, None where that cannot be told."""
    # Of a topic with the same id the end was cut, and the committed offset may be older than that.
    if _is_another(stored, bounds) and bounds.vouched and (bounds.committed or 0) <= bounds.end:
        return bounds.committed
    return None


def _is_another(stored: Place, bounds: Bounds) -> bool:
    return bool(stored.topic and bounds.topic) and stored.topic != bounds.topic


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
