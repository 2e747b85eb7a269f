"""What an operator's seek would do, partition by partition, before anything is changed.

Seeking forward skips records forever. Seeking back runs accepted records again, as new events of a
new epoch, so it needs `--rerun`. Not here: storing the plan (`service.operate`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from aiokafka import TopicPartition  # type: ignore[import-untyped]  # it carries no types

from turnout.service.domain.errors import Refused
from turnout.service.domain.trigger import Seek, SeekPlan

from . import broker
from .client import as_trigger_error, open_consumer, started
from .cluster import describe
from .positions import (
    MEMBER,
    Bounds,
    KnownTopic,
    Position,
    is_different_log,
    is_same_topic,
    key_of,
    read_by_group,
    read_known_topic,
    read_position,
    spans_from,
)

if TYPE_CHECKING:
    from . import KafkaTrigger


async def plan(
    trigger: KafkaTrigger,
    seek: Seek,
    positions: Mapping[str, str],
    connection: Mapping[str, Any],
) -> SeekPlan:
    """Return the new positions and a sentence for each; raises `Refused`, `TriggerError`."""
    info = (await describe(connection, trigger.topics, create=None)).check()
    partitions = _chosen(trigger, info.topics, seek)
    async with open_consumer(
        connection, group_id=trigger.group, enable_auto_commit=False
    ) as consumer:
        with as_trigger_error("cannot reach Kafka"):
            await started(consumer)
        found = await broker.bounds(consumer, partitions)
        limits = {one: it.seen_by(positions.get(MEMBER)) for one, it in found.items()}
        targets = await _targets(consumer, seek, limits)
    moved: dict[str, str | None] = {}
    sentences = []
    for partition in partitions:
        key = key_of(partition)
        known = read_known_topic(positions.get(partition.topic))
        if known is None or known.cluster != info.cluster:
            moved[partition.topic] = KnownTopic(info.cluster, info.topics[partition.topic]).text()
        position, sentence = decide(
            read_position(positions.get(key)), limits[partition], targets[partition], seek.rerun
        )
        moved[key] = position.text()
        sentences.append(f"{key}: {sentence}{_remark(trigger, seek)}")
    return SeekPlan(positions=moved, sentences=sentences)


def _remark(trigger: KafkaTrigger, seek: Seek) -> str:
    if trigger.id is None or not seek.rerun:
        return ""
    return (
        "; an id that was accepted within the dedupe window stays one event and does not run "
        "again: replay it with turnout replay EVENT"
    )


def decide(
    stored: Position | None, limits: Bounds, target: int, rerun: bool
) -> tuple[Position, str]:
    """Return the new position of one partition, and a sentence that explains it."""
    if not limits.first <= target <= limits.end:
        raise Refused(f"there is no offset {target}; it has {limits.first} to {limits.end}")
    at, epoch = _now(stored, limits)
    done = spans_from(stored.done, target) if stored is not None and stored.epoch == epoch else ()
    position = Position(target, epoch, sought=True, topic=limits.topic, done=done)
    if at is None:
        return position, f"reads from {target}; it was not read before"
    if target == at:
        return position, f"stays at {target}"
    if target > at:
        return (
            position,
            f"goes on from {at} to {target}: {_records(target - at)} will never be read",
        )
    if not rerun:
        raise Refused(
            f"going back from {at} to {target} runs {_records(at - target)} again that were "
            "accepted before; say --rerun if that is wanted"
        )
    return (
        replace(position, epoch=epoch + 1, done=()),
        f"goes back from {at} to {target}: {_records(at - target)} will run again, "
        f"as new events of epoch {epoch + 1}",
    )


def _now(stored: Position | None, limits: Bounds) -> tuple[int | None, int]:
    """Return how far the partition is read, None if not at all, and its epoch."""
    if stored is None:
        return limits.committed, 1
    if is_different_log(stored, limits):
        at = limits.intact_end if is_same_topic(stored, limits) else None
        others = read_by_group(stored, limits)
        return at if others is None else others, max(stored.epoch + 1, limits.epoch)
    if stored.sought or limits.is_own:
        return stored.next, stored.epoch
    return max(stored.next, limits.committed or 0), stored.epoch


def _chosen(trigger: KafkaTrigger, topics: Mapping[str, int], seek: Seek) -> list[TopicPartition]:
    listed = [
        TopicPartition(topic, number)
        for topic, count in sorted(topics.items())
        if trigger.reads(topic)
        for number in range(count)
    ]
    if seek.partition is not None:
        wanted = [one for one in listed if seek.partition in (str(one.partition), key_of(one))]
        if not wanted:
            known = ", ".join(key_of(one) for one in listed)
            raise Refused(f"no partition {seek.partition!r}; partitions: {known}")
        listed = wanted
    if seek.to.isdecimal() and len(listed) > 1:
        raise Refused("an offset is of one partition; say which with --partition")
    return listed


async def _targets(
    consumer: Any, seek: Seek, limits: Mapping[TopicPartition, Bounds]
) -> dict[TopicPartition, int]:
    if seek.to == "start":
        return {one: limit.first for one, limit in limits.items()}
    if seek.to == "end":
        return {one: limit.end for one, limit in limits.items()}
    if seek.to.isdecimal():
        return dict.fromkeys(limits, int(seek.to))
    try:
        instant = datetime.fromisoformat(seek.to)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise Refused(
            f"cannot seek to {seek.to!r}: write start, end, an offset, or an instant with its zone "
            "such as 2026-01-31T09:00:00Z"
        )
    return await broker.offsets_at(consumer, instant, limits)


def _records(count: int) -> str:
    return f"{count} record{'s' * (count != 1)}"
