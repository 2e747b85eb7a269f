"""How far a partition is read: the stored place, and where reading goes on after a restart.

The place of a partition is written in the transaction of the records before it, so it never lies:
nothing below it is emitted again, nothing at or above it was. It is what makes a record one event,
and the journal needs no other guard. Kafka's committed offset only follows it. `settle` decides
where to read on, as a pure function: a place counts in the topic it is of, which its id tells, and
in no other one of that name; of a topic that has lost its newest records it counts up to the cut.
Not here: reading, and asking the broker.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any
from weakref import WeakKeyDictionary

import orjson

from turnout.service.domain.errors import TriggerError
from turnout.service.domain.trigger import Emitter

Spans = tuple[tuple[int, int], ...]
"""Offsets, as first and last of each unbroken run of them, in order."""


@dataclass(frozen=True, slots=True)
class Place:
    """The offset to read next, in the epoch of the partition's life (from 1).

    `sought` marks a place an operator or an alarm chose below Kafka's committed offset: that one
    counts for nothing until it has been moved back too. `topic` is the id of the topic, empty
    where the broker knows none. `done` are offsets behind `next` that are not to be read: they
    have begun, here or elsewhere, when what came before them was handed back.
    """

    next: int
    epoch: int = 1
    sought: bool = False
    topic: str = ""
    done: Spans = ()

    def text(self) -> str:
        """Return what is stored."""
        topic = f', "topic": "{self.topic}"' if self.topic else ""
        sought = ', "sought": true' if self.sought else ""
        spans = ", ".join(f"[{first}, {last}]" for first, last in self.done)
        done = f', "done": [{spans}]' if spans else ""
        return f'{{"next": {self.next}, "epoch": {self.epoch}{topic}{sought}{done}}}'

    def read_to(self, offset: int) -> Place:
        """Return the place behind what was read of it."""
        done = behind(self.done, offset) if self.done else ()
        return Place(offset, self.epoch, topic=self.topic, done=done)

    def is_done(self, offset: int) -> bool:
        """Whether a record at or behind `next` is not to be read."""
        at = bisect_right(self.done, offset, key=itemgetter(0))
        return at > 0 and offset <= self.done[at - 1][1]


def behind(spans: Spans, offset: int) -> Spans:
    """Return what of the spans is at or behind an offset."""
    return tuple((max(first, offset), last) for first, last in spans if last >= offset)


def both(one: Spans, other: Spans) -> Spans:
    """Return the offsets of one and of the other."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted((*one, *other)):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return tuple(joined)


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
            tuple((int(first), int(last)) for first, last in found.get("done", ())),
        )
    except (ValueError, KeyError, TypeError):
        raise TriggerError(f"the stored position {text!r} is no place in a partition") from None


Leader = tuple[int, int]
"""A leader epoch, and an offset: no record below it is of a later epoch."""


@dataclass(frozen=True, slots=True)
class Topic:
    """What was known of a topic when the trigger first met it: its cluster, partitions and id.

    A partition added later is read from its first record, whatever `start=` says, and so is each
    of a topic made anew: nothing in it is older than the trigger. `leaders` says of partitions
    which leader wrote what was read, which tells a log that was cut and written on since.
    """

    cluster: str
    partitions: int
    id: str = ""
    leaders: Mapping[int, Leader] = field(default_factory=dict)

    def text(self) -> str:
        """Return what is stored."""
        told: dict[str, Any] = {
            "cluster": self.cluster,
            "partitions": self.partitions,
            "id": self.id,
        }
        if self.leaders:
            told["leaders"] = {str(number): self.leaders[number] for number in sorted(self.leaders)}
        return orjson.dumps(told).decode()


def read_topic(text: str | None) -> Topic | None:
    """Read back what is stored of a topic; raises `TriggerError` for what is none."""
    if text is None:
        return None
    try:
        found = orjson.loads(text)
        return Topic(
            str(found["cluster"]),
            int(found["partitions"]),
            str(found.get("id", "")),
            {int(one): (int(e), int(at)) for one, (e, at) in found.get("leaders", {}).items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise TriggerError(f"the stored position {text!r} describes no topic") from None


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the broker says of a partition: first offset, end, and the group's committed offset.

    `topic` is the id of its topic, or empty. An offset that is known to be of another topic of this
    name is not `committed`, and one that is known to be of this very topic is `vouched` for;
    `epoch` is the one its member was in. `stable` is where open transactions begin, when that is
    below the end: nothing behind it can be read yet. `done` are offsets behind the committed one
    that need not be read, in that epoch. `cut` is where what was read of the log ends,
    when another leader has written other records from there on.
    """

    first: int
    end: int
    committed: int | None
    topic: str = ""
    vouched: bool = False
    stable: int | None = None
    epoch: int = 1
    cut: int | None = None
    done: Spans = ()

    @property
    def readable(self) -> int:
        """The offset behind all that can be read now."""
        return self.end if self.stable is None else min(self.stable, self.end)

    @property
    def kept(self) -> int:
        """The offset up to which the log is the one that was read."""
        kept = self.end if self.cut is None else min(self.cut, self.end)
        return max(kept, self.first)


@dataclass(frozen=True, slots=True)
class Settled:
    """Where to read on, and what an operator must hear about it (`alarm` is a log event)."""

    place: Place
    alarm: str | None = None
    lost: int = 0


def settle(stored: Place | None, bounds: Bounds, first_place: int) -> Settled:
    """Return where to read on; `first_place` is where a partition never read before begins.

    `max(ledger, committed)` in the ordinary case. A topic made anew has a new epoch, and is read
    from its first record, or from where a member with another journal has read it to. A topic that
    is the same and has lost records that were read is read on behind the cut: what is below it
    was read and keeps its identity, and what is written there now has a new epoch, as its offsets
    were used before. A first offset above the ledger means that retention took records nobody read.
    """
    if stored is None:
        return _first_settled(bounds, first_place)
    if is_anew(stored, bounds):
        is_same = is_same_topic(stored, bounds)
        begins = bounds.kept if is_same else bounds.first
        place = Place(begins, stored.epoch + 1, sought=True, topic=bounds.topic)
        read_to = read_by_others(stored, bounds)
        if read_to is not None:
            epoch = max(place.epoch, bounds.epoch)
            begins = max(read_to, bounds.first)
            place = Place(begins, epoch, topic=bounds.topic, done=behind(bounds.done, begins))
        return Settled(place, "kafka.log_cut" if is_same else "kafka.topic_recreated")
    place = replace(stored, topic=bounds.topic or stored.topic)
    # A committed offset past the end is of an earlier topic; it says nothing of this one.
    committed = -1 if stored.sought or bounds.committed is None else bounds.committed
    if stored.next < committed <= bounds.end:
        place = replace(place, next=committed, epoch=max(place.epoch, bounds.epoch))
    place = replace(place, done=_done(stored, place, bounds))
    if place.next < bounds.first:
        lost = bounds.first - place.next
        done = behind(place.done, bounds.first)
        return Settled(replace(place, next=bounds.first, done=done), "kafka.records_expired", lost)
    return Settled(place)


def _done(stored: Place, place: Place, bounds: Bounds) -> Spans:
    """Return what is not to be read behind a place, as far as it is known, here or in the group."""
    here = stored.done if stored.epoch == place.epoch else ()
    group = bounds.done if bounds.epoch == place.epoch and not stored.sought else ()
    return behind(both(here, group), place.next) if here or group else ()


def _first_settled(bounds: Bounds, first_place: int) -> Settled:
    """Return where a partition begins that this journal knows nothing of."""
    if bounds.committed is None:
        return Settled(Place(first_place, topic=bounds.topic))
    if bounds.committed <= bounds.end:
        done = behind(bounds.done, bounds.committed)
        return Settled(Place(bounds.committed, bounds.epoch, topic=bounds.topic, done=done))
    if bounds.vouched:  # the group has read this very topic further: the log was cut
        place = Place(bounds.end, bounds.epoch + 1, sought=True, topic=bounds.topic)
        return Settled(place, "kafka.log_cut")
    # The group's offset is of an earlier topic of this name.
    place = Place(bounds.first, sought=True, topic=bounds.topic)
    return Settled(place, "kafka.offset_past_end")


def is_anew(stored: Place, bounds: Bounds) -> bool:
    """Whether the log is not the one that was read: another topic's, or one that was cut."""
    if _is_another(stored, bounds) or stored.next > bounds.end:
        return True
    return bounds.cut is not None and bounds.cut < stored.next


def is_same_topic(stored: Place, bounds: Bounds) -> bool:
    """Whether the topic is known to be the one that was read, whatever its log has lost."""
    return bool(stored.topic) and stored.topic == bounds.topic


def read_by_others(stored: Place, bounds: Bounds) -> int | None:
    """Return where in a log that is not the one read here the group is, None if nobody can tell."""
    if not bounds.vouched or (bounds.committed or 0) > bounds.end:
        return None
    # In the same topic, cut, an offset may be older than the cut; one of a later epoch is not.
    if _is_another(stored, bounds) or bounds.epoch > stored.epoch:
        return bounds.committed
    return None


def _is_another(stored: Place, bounds: Bounds) -> bool:
    return bool(stored.topic and bounds.topic) and stored.topic != bounds.topic


class Ledger:
    """The places of one trigger in this process, shared by all who read for it.

    Whoever emits holds `lock` from filtering what is known until the journal has answered.
    `unread` are the partitions whose lag still shows after reading ended in an error.
    """

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.places: dict[str, Place] = {}
        self.topics: dict[str, Topic] = {}
        self.unread: set[str] = set()

    def load(self, stored: Mapping[str, str]) -> None:
        """Take over what the journal holds."""
        for name, text in stored.items():
            if "/" in name:
                place = read_place(text)
                if place is not None:
                    self.places[name] = place
            else:
                topic = read_topic(text)
                if topic is not None:
                    self.topics[name] = topic


_ledgers: WeakKeyDictionary[Any, Ledger] = WeakKeyDictionary()


def ledger_of(emit: Emitter) -> Ledger:
    """Return the one ledger of a trigger's emitter."""
    return _ledgers.setdefault(emit, Ledger())
