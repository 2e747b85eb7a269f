"""Dedupe: a delivery is stored once within a window, and its events are found by their ids.

The key of a delivery is a digest of its id, and one of where it came from. While the window is
open it also finds the event by its id; afterwards an index of the event itself does. Not here: what
makes two deliveries the same (`domain.duplicates`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol, TypeAlias

import apsw
import orjson

from turnout.service.domain.duplicates import digest, is_same
from turnout.service.domain.event import Event
from turnout.service.journal.records import Appended, Entry

from .bulk import insert
from .statements import load
from .values import dump

_SQL = load("dedupe")
_HALF_KEY_BYTES = 10  # 80 bits: a sender cannot find another id with the same half

First: TypeAlias = tuple[int, bytes, tuple[str, ...] | None]
"""A first delivery: its event_seq, the digest of its content, its run ids if they are in memory."""


class DeliveryRow(NamedTuple):
    """The columns of the table `dedupe`."""

    event_seq: int
    key: bytes
    body: bytes
    accepted_at: int
    expires_at: int | None


INSERT = insert("dedupe", DeliveryRow._fields)


class Delivered(Protocol):
    """A write of deliveries."""

    @property
    def identities(self) -> Sequence[tuple[bytes, bytes] | None]:
        """What identifies each, None for an event that is minted."""


def identity(event: Event) -> tuple[bytes, bytes]:
    """Return the key that identifies a delivery, and the digest of its content.

    The key starts with the digest of the id; see `found_by_id`.
    """
    key = _digest(event.id, _HALF_KEY_BYTES) + _origin(event.tenant, event.trigger, event.source)
    return key, digest(event)


def found_by_id(event_id: str) -> tuple[str, list[Any]]:
    """Return the condition that finds the events with an id by index, and its values."""
    low = _digest(event_id, _HALF_KEY_BYTES)
    condition = (
        "e.id = ? AND e.seq IN (SELECT seq FROM events WHERE by_id = 1 AND id = ?"
        " UNION ALL SELECT event_seq FROM dedupe WHERE key BETWEEN ? AND ?)"
    )
    return condition, [event_id, event_id, low, low + b"\xff" * (_HALF_KEY_BYTES + 1)]


@lru_cache(maxsize=1024)
def _origin(tenant: str, trigger: str, source: str) -> bytes:
    # The lengths keep ("a", "bc") and ("ab", "c") apart.
    parts = (tenant, trigger, source)
    return _digest("".join(f"{len(part)}:{part}" for part in parts), _HALF_KEY_BYTES)


def _digest(text: str, size: int) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()


def known(connection: apsw.Connection, jobs: Sequence[Delivered]) -> dict[bytes, First]:
    """Return the first deliveries that jobs may repeat, by key."""
    keys = [pair[0].hex() for job in jobs for pair in job.identities if pair is not None]
    if not keys:
        return {}
    found = connection.execute(_SQL["first_deliveries"], (dump(keys),)).get
    return {
        bytes.fromhex(key): (seq, bytes.fromhex(body), None)
        for key, seq, body in orjson.loads(found)
    }


def repeated(entry: Entry, content: bytes, first: First) -> Appended:
    """Answer for an event that was delivered before; its decision is written later."""
    seq, first_content, ids = first
    same = is_same(entry.event, content, first_content)
    return Appended(
        event_seq=seq,
        event=entry.event.id,
        runs=ids or (),
        duplicate=same,
        conflict=not same,
    )


def end_window(connection: apsw.Connection, before: int, now: int, limit: int) -> int:
    """End the dedupe window of old deliveries; their events are then found by id another way.

    Old are those whose own window ends by `now`, and of the others those accepted before `before`.
    """
    expired: list[Any] = connection.execute(_SQL["expired_deliveries"], (now, limit)).fetchall()
    old = [row[0] for row in expired] + _old(connection, before, limit)
    if old:
        connection.execute(_SQL["find_by_id"], (dump(old),))
        forget(connection, old)
    return len(old)


def _old(connection: apsw.Connection, before: int, limit: int) -> list[int]:
    """Return the first deliveries without a window of their own that are old.

    Those that have a longer window may lie before them, so where to look next is remembered.
    """
    first: list[Any] = connection.execute(_SQL["first_without_window"], (limit,)).fetchall()
    young = next((seq for seq, at in first if at >= before), None)
    if young is not None:
        passed = young - 1
    elif len(first) == limit:
        passed = first[-1][0]
    else:
        passed = None
    connection.execute(_SQL["passed"], (passed,))
    return [seq for seq, at in first if at < before]


def forget(connection: apsw.Connection, seqs: Sequence[int]) -> None:
    """Forget the deliveries of events: they may come again."""
    connection.execute(_SQL["delete_deliveries"], (dump(seqs),))
