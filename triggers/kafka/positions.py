"""How far a partition is read: the stored position, and where reading starts after a restart.

The position of a partition is written in the transaction of the records before it. So it is exact:
everything below it is emitted, nothing at or above it is. That makes a record one event, and the
journal needs no other guard. Kafka's committed offset only follows. `choose_start` decides where to
read on, as a pure function. A position counts only in the topic whose id it has, not in another one
of the same name; in a topic that has lost its newest records it counts up to the cut. Not here:
reading, and asking the broker.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import orjson

from turnout.service.domain.errors import TriggerError

if TYPE_CHECKING:
    from aiokafka import TopicPartition  # type: ignore[import-untyped]  # it carries no types


def key_of(partition: TopicPartition) -> str:
    """Return `topic/partition`, the name of a partition in positions and metrics."""
    return f"{partition.topic}/{partition.partition}"


MEMBER = "~member"
"""The position, of no topic, that holds a word for this journal: it is in what it commits."""

READS_AGAIN = "kafka.reads_again"

Spans = tuple[tuple[int, int], ...]
"""Offsets, as the first and last of each unbroken run, in order."""


@dataclass(frozen=True, slots=True)
class Position:
    """The offset to read next, in an epoch of the partition (from 1).

    `sought` marks a position that an operator or an alarm put below Kafka's committed offset: that
    offset is ignored until it is moved back too. `topic` is the topic's id, empty where the broker
    knows none. `done` are offsets behind `next` that are not read again: their runs had begun, here
    or elsewhere, when the records before them were handed back. `leader_epoch` tells a log that was
    cut and has grown again: no record below `next` is of a later leader; -1 where that is unknown.
    """

    next: int
    epoch: int = 1
    sought: bool = False
    topic: str = ""
    done: Spans = ()
    leader_epoch: int = -1

    def text(self) -> str:
        """Return what is stored."""
        topic = f', "topic": "{self.topic}"' if self.topic else ""
        sought = ', "sought": true' if self.sought else ""
        spans = ", ".join(f"[{first}, {last}]" for first, last in self.done)
        done = f', "done": [{spans}]' if spans else ""
        leader = f', "leader_epoch": {self.leader_epoch}' if self.leader_epoch >= 0 else ""
        return f'{{"next": {self.next}, "epoch": {self.epoch}{topic}{sought}{done}{leader}}}'

    def read_to(self, offset: int, leader_epoch: int = -1) -> Position:
        """Return the position after reading up to `offset`, where a leader of that epoch wrote."""
        done = spans_from(self.done, offset) if self.done else ()
        return Position(offset, self.epoch, topic=self.topic, done=done, leader_epoch=leader_epoch)

    def is_done(self, offset: int) -> bool:
        """Whether the record at `offset`, at or behind `next`, is not read again."""
        at = bisect_right(self.done, offset, key=itemgetter(0))
        return at > 0 and offset <= self.done[at - 1][1]


def spans_from(spans: Spans, offset: int) -> Spans:
    """Return the part of the spans at or behind an offset."""
    return tuple((max(first, offset), last) for first, last in spans if last >= offset)


def union(one: Spans, other: Spans) -> Spans:
    """Return the offsets of both, joined."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted((*one, *other)):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return tuple(joined)


def read_position(text: str | None) -> Position | None:
    """Read back a stored position; raises `TriggerError` for any other text."""
    if text is None:
        return None
    try:
        found = orjson.loads(text)
        return Position(
            int(found["next"]),
            int(found["epoch"]),
            bool(found.get("sought", False)),
            str(found.get("topic", "")),
            tuple((int(first), int(last)) for first, last in found.get("done", ())),
            int(found.get("leader_epoch", -1)),
        )
    except (ValueError, KeyError, TypeError):
        raise TriggerError(f"the stored position {text!r} is no position in a partition") from None


@dataclass(frozen=True, slots=True)
class KnownTopic:
    """What the trigger knew of a topic at first sight: its cluster, partition count and id.

    A partition added later is read from its first record, whatever `start=` says, and so is each
    partition of a recreated topic: none of its records is older than the trigger.
    """

    cluster: str
    partitions: int
    id: str = ""

    def text(self) -> str:
        """Return what is stored."""
        fields: dict[str, Any] = {
            "cluster": self.cluster,
            "partitions": self.partitions,
            "id": self.id,
        }
        return orjson.dumps(fields).decode()


def read_known_topic(text: str | None) -> KnownTopic | None:
    """Read back a stored topic; raises `TriggerError` for any other text."""
    if text is None:
        return None
    try:
        found = orjson.loads(text)
        return KnownTopic(
            str(found["cluster"]),
            int(found["partitions"]),
            str(found.get("id", "")),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise TriggerError(f"the stored position {text!r} describes no topic") from None


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the broker says of a partition: first offset, end, and the group's committed offset.

    `topic` is the topic's id, or empty. `committed` is None when the offset is known to belong to
    another topic of this name; `topic_confirmed` says that it is known to belong to this one.
    `epoch` and `done` are those of the member that committed it. `stable` is where open
    transactions begin: nothing behind it can be read yet. `leader_epoch` is that of the leader, -1
    if unknown. `cut` is where the log that was read ends when another leader has written other
    records from there on. `by` names the journal that committed, if it is known; `is_own` says that
    it is this one, which had read further before it was restored from a backup.
    """

    first: int
    end: int
    committed: int | None
    topic: str = ""
    topic_confirmed: bool = False
    stable: int | None = None
    epoch: int = 1
    cut: int | None = None
    done: Spans = ()
    leader_epoch: int = -1
    by: str = ""
    is_own: bool = False

    def seen_by(self, member: str | None) -> Bounds:
        """Return these bounds as the journal with this word has to see them."""
        return replace(self, is_own=bool(member) and self.by == member)

    @property
    def readable(self) -> int:
        """The offset behind everything that can be read now."""
        return self.end if self.stable is None else min(self.stable, self.end)

    @property
    def intact_end(self) -> int:
        """The offset up to which the log is the one that was read."""
        intact_end = self.end if self.cut is None else min(self.cut, self.end)
        return max(intact_end, self.first)


@dataclass(frozen=True, slots=True)
class Start:
    """Where to read on, and the log event that alarms the operator, if any."""

    position: Position
    alarm: str | None = None
    lost: int = 0


def choose_start(stored: Position | None, bounds: Bounds, default_start: int) -> Start:
    """Return where to read on; `default_start` is for a partition that was never read.

    Usually `max(stored, committed)`. A recreated topic gets a new epoch and is read from its first
    record, or from where a member with another journal has read to. A topic that lost records which
    were read is read on behind the cut, in a new epoch, since new records reuse those offsets; what
    is below the cut was read and keeps its identity. A first offset above the stored one means that
    retention deleted records that nobody read. An offset that this very journal has committed ahead
    of what it holds is of a time that it has lost: it was restored from a backup, and reads again.
    """
    start = _choose_start(stored, bounds, default_start)
    is_expected = start.alarm in (None, READS_AGAIN)
    stays = stored is not None and is_expected and start.position.next == stored.next
    if stays and start.position.leader_epoch >= 0:
        return start
    return replace(start, position=replace(start.position, leader_epoch=bounds.leader_epoch))


def _choose_start(stored: Position | None, bounds: Bounds, default_start: int) -> Start:
    if stored is None:
        return _first_start(bounds, default_start)
    if is_different_log(stored, bounds):
        is_same = is_same_topic(stored, bounds)
        begins = bounds.intact_end if is_same else bounds.first
        position = Position(begins, stored.epoch + 1, sought=True, topic=bounds.topic)
        read_to = read_by_group(stored, bounds)
        if read_to is not None:
            epoch = max(position.epoch, bounds.epoch)
            begins = max(read_to, bounds.first)
            position = Position(
                begins, epoch, topic=bounds.topic, done=spans_from(bounds.done, begins)
            )
        return Start(position, "kafka.log_cut" if is_same else "kafka.topic_recreated")
    position = replace(stored, topic=bounds.topic or stored.topic)
    # A committed offset past the end is of an earlier topic; it says nothing of this one.
    ignored = stored.sought or bounds.is_own
    committed = -1 if ignored or bounds.committed is None else bounds.committed
    if stored.next < committed <= bounds.end:
        position = replace(position, next=committed, epoch=max(position.epoch, bounds.epoch))
    position = replace(position, done=_done(stored, position, bounds))
    if position.next < bounds.first:
        lost = bounds.first - position.next
        done = spans_from(position.done, bounds.first)
        return Start(replace(position, next=bounds.first, done=done), "kafka.records_expired", lost)
    if bounds.is_own and not stored.sought and position.next < (bounds.committed or 0):
        return Start(replace(position, sought=True), READS_AGAIN)
    return Start(position)


def _done(stored: Position, position: Position, bounds: Bounds) -> Spans:
    """Return the done offsets behind a position, as known here or in the group."""
    ignored = stored.sought or bounds.is_own
    here = stored.done if stored.epoch == position.epoch else ()
    group = bounds.done if bounds.epoch == position.epoch and not ignored else ()
    return spans_from(union(here, group), position.next) if here or group else ()


def _first_start(bounds: Bounds, default_start: int) -> Start:
    """Return where to start in a partition that this journal has never read."""
    if bounds.committed is None:
        return Start(Position(default_start, topic=bounds.topic))
    if bounds.is_own and default_start < bounds.committed <= bounds.end:
        again = Position(default_start, bounds.epoch, sought=True, topic=bounds.topic)
        return Start(again, READS_AGAIN)
    if bounds.committed <= bounds.end:
        done = spans_from(bounds.done, bounds.committed)
        return Start(Position(bounds.committed, bounds.epoch, topic=bounds.topic, done=done))
    if bounds.topic_confirmed:  # the group has read this very topic further: the log was cut
        position = Position(bounds.end, bounds.epoch + 1, sought=True, topic=bounds.topic)
        return Start(position, "kafka.log_cut")
    # The group's offset is of an earlier topic of this name.
    position = Position(bounds.first, sought=True, topic=bounds.topic)
    return Start(position, "kafka.offset_past_end")


def is_different_log(stored: Position, bounds: Bounds) -> bool:
    """Whether the log is not the one that was read: the topic was recreated, or the log was cut."""
    if is_another_topic(stored, bounds.topic) or stored.next > bounds.end:
        return True
    return bounds.cut is not None and bounds.cut < stored.next


def is_same_topic(stored: Position, bounds: Bounds) -> bool:
    """Whether the topic is known to be the one that was read, whatever it has lost."""
    return bool(stored.topic) and stored.topic == bounds.topic


def read_by_group(stored: Position, bounds: Bounds) -> int | None:
    """Return how far the group has read a log that is not the one read here; None if unknown."""
    if not bounds.topic_confirmed or bounds.is_own or (bounds.committed or 0) > bounds.end:
        return None
    # In the same topic, cut, an offset may be older than the cut; one of a later epoch is not.
    if is_another_topic(stored, bounds.topic) or bounds.epoch > stored.epoch:
        return bounds.committed
    return None


def is_another_topic(stored: Position, topic_id: str) -> bool:
    """Whether the topic is known to be another one than was read."""
    return bool(stored.topic and topic_id) and stored.topic != topic_id


class Positions:
    """The positions of one consumer's session, as they are stored.

    Whoever emits holds `lock` from choosing what is new until the journal has answered. Another
    session of the trigger, or an operator's seek, may move them too: the journal then refuses the
    write that did not know of it (`PositionsMoved`), and they are loaded again.
    """

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.partitions: dict[str, Position] = {}
        self.member = ""

    def load(self, stored: Mapping[str, str]) -> None:
        """Load what the journal holds, in place of what was known."""
        self.partitions.clear()
        self.member = stored.get(MEMBER, "")
        self.update(stored)

    def update(self, moved: Mapping[str, str]) -> None:
        """Note what is stored of some partitions, and of topics, which have no position."""
        for name, text in moved.items():
            position = read_position(text) if "/" in name else None
            if position is not None:
                self.partitions[name] = position
