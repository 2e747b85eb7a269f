"""The metadata of a committed offset: what another journal has to know of it, in a few words.

It names the topic by its id, so that an offset does not count in a later topic of the same name;
the epoch; the offsets behind it that are done; and the journal that commits, so that it knows its
own offsets when it was restored from a backup. Pure functions.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from .positions import Bounds, Position, Spans

_FIELDS = {"topic", "epoch", "done", "by"}
# Anybody may commit for the group: numbers that a position cannot hold are nobody's.
_EPOCH = re.compile(r"[0-9]{1,9}")
_SPANS = re.compile(r"[0-9]{1,15}\+[1-9][0-9]{0,14}(,[0-9]{1,15}\+[1-9][0-9]{0,14})*")


def offset_and_metadata(position: Position, member: str) -> tuple[int, str]:
    """Return what is committed for a position: the offset, and its metadata.

    The metadata holds the topic id, the epoch if it is not the first, the done offsets, and the
    word for the journal.
    """
    words = [f"topic:{position.topic}"] if position.topic else []
    if position.epoch > 1:
        words.append(f"epoch:{position.epoch}")
    if position.done:
        words.append(f"done:{spans_text(position.done, position.next)}")
    if member:
        words.append(f"by:{member}")
    return position.next, " ".join(words)


def _read_metadata(text: str) -> dict[str, str]:
    """Read back the metadata of `offset_and_metadata`; anybody else's is ignored."""
    pairs = [word.partition(":") for word in text.split(" ")]
    found = {name: value for name, _, value in pairs}
    return found if found.keys() <= _FIELDS else {}


def spans_text(spans: Spans, offset: int) -> str:
    """Write spans behind an offset: for each, the gap before it and its length."""
    parts = []
    for first, last in spans:
        parts.append(f"{first - offset}+{last - first + 1}")
        offset = last + 1
    return ",".join(parts)


def read_spans(text: str, offset: int) -> Spans:
    """Read back `spans_text`; () for any other text."""
    if not _SPANS.fullmatch(text):
        return ()
    spans = []
    for part in text.split(","):
        gap, count = map(int, part.split("+"))
        spans.append((offset + gap, offset + gap + count - 1))
        offset += gap + count
    return tuple(spans)


def with_committed(limits: Bounds, committed: Any) -> Bounds:
    """Add what the group has committed, unless it was committed for another topic of this name."""
    if committed is None or committed.offset < 0:
        return limits
    metadata = _read_metadata(str(committed.metadata))
    topic = metadata.get("topic", "")
    if topic and limits.topic and topic != limits.topic:
        return limits
    confirmed = bool(topic and limits.topic)
    epoch = int(metadata["epoch"]) if _EPOCH.fullmatch(metadata.get("epoch", "")) else 1
    done = read_spans(metadata.get("done", ""), committed.offset)
    return replace(
        limits,
        committed=committed.offset,
        topic_confirmed=confirmed,
        epoch=epoch,
        done=done,
        by=metadata.get("by", ""),
    )
