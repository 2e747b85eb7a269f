"""Pruning and counts: the part of the journal that keeps it in bounds (`Retention`).

Counts of runs are kept in memory: they are exact, and no query is needed. Not here: what is
deleted (`retention`), and how much space there is (`disk_space`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any

import apsw

from . import flow_state, retention
from .blobs import BATCH, BlobStore
from .calls import Calls
from .counters import RunCounters
from .disk_space import DiskSpace
from .statements import load
from .values import micros

_PROBE = load("operations")["probe"]
_READS = load("reads")


class RunTotals:
    """Unfinished runs by state, and dead letters by flow: all, and those that are not undone."""

    __slots__ = ("dead", "not_undone", "on_dead_letters", "unfinished")

    def __init__(self, connection: apsw.Connection) -> None:
        def read(name: str) -> dict[str, int]:
            rows: list[Any] = connection.execute(_READS[name]).fetchall()
            return dict(rows)

        self.unfinished = read("unfinished")
        self.dead = read("dead")
        self.not_undone = read("not_undone")
        self.on_dead_letters: Callable[[], object] | None = None

    def add(self, counters: RunCounters) -> None:
        """Add the changes of a commit, in the same step of the loop that wakes its callers."""
        for state, change in counters.states.items():
            self.unfinished[state] = self.unfinished.get(state, 0) + change
        if counters.dead:
            _add(self.dead, counters.dead)
            if self.on_dead_letters is not None:
                self.on_dead_letters()
        if counters.not_undone:
            _add(self.not_undone, counters.not_undone)


def _add(counted: dict[str, int], changes: Mapping[str, int]) -> None:
    for flow, change in changes.items():
        left = counted.get(flow, 0) + change
        if left:
            counted[flow] = left
        else:
            counted.pop(flow, None)


class Pruning(Calls):
    """Deletes what is old, and tells how much there is."""

    _counted: RunTotals
    _disk_space: DiskSpace
    _blobs: BlobStore

    async def prune(
        self,
        *,
        finished_before: datetime,
        failed_before: datetime,
        unmatched_before: datetime,
        dedupe_before: datetime,
        now: datetime,
        limit: int,
    ) -> int:
        """Delete up to `limit` old runs with their steps, then events left without runs."""
        before = {
            "finished_before": micros(finished_before),
            "failed_before": micros(failed_before),
            "unmatched_before": micros(unmatched_before),
            "dedupe_before": micros(dedupe_before),
            "now": micros(now),
        }

        def write(connection: apsw.Connection, counters: RunCounters) -> int:
            deleted = retention.prune(connection, counters, **before, limit=limit)
            self._disk_space.measure()
            return deleted

        deleted: int = await self._call(write)
        return deleted

    async def prune_oldest(self, limit: int) -> int:
        """Delete up to `limit` runs and unmatched events, the first ended first; returns rows.

        For `max_journal_bytes`: call until `size_bytes` is low enough or it returns 0.
        """

        def write(connection: apsw.Connection, counters: RunCounters) -> int:
            deleted = retention.prune_oldest(connection, counters, limit)
            self._disk_space.measure()
            return deleted

        deleted: int = await self._call(write)
        return deleted

    async def prune_states(self, *, unused_since: datetime, now: datetime, limit: int) -> int:
        """Delete what flows keep under ordering keys no run has had since; see the contract."""
        since, at = micros(unused_since), micros(now)
        deleted: int = await self._call(
            lambda connection, counters: flow_state.prune(connection, since, at, limit)
        )
        return deleted

    async def prune_blobs(self) -> int | None:
        """Delete large results that no row names any more; returns how many bytes.

        None while a backup is made, which needs them.
        """
        names = await asyncio.get_running_loop().run_in_executor(None, self._blobs.names)
        freed = 0
        for start in range(0, len(names), BATCH):
            sweep = partial(self._blobs.sweep, names=names[start : start + BATCH])
            swept = await self.read(sweep)
            if swept is None:
                return None
            freed += swept
        return freed

    def counts(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Return (unfinished runs by state, dead letters by flow); exact, from memory."""
        return dict(self._counted.unfinished), dict(self._counted.dead)

    def not_undone(self) -> Mapping[str, int]:
        """Return how many dead letters, by flow, have an undo that failed; exact, from memory."""
        return dict(self._counted.not_undone)

    def size_bytes(self) -> int:
        """Return the journal's size on disk, its log and large results included.

        Pages free for reuse do not count. Writes measure it, at most every quarter of a second,
        and so do pruning and `probe`.
        """
        return self._disk_space.used_bytes + self._blobs.used_bytes

    def free_bytes(self) -> int:
        """Return the space that the journal has left on its disk, pages for reuse included."""
        return self._disk_space.read_free_bytes()

    @property
    def queued_writes(self) -> int:
        """How many writes are not committed yet."""
        return self._writer.queued

    @property
    def writable(self) -> str | None:
        """None while writes work, else the reason (disk full, broken)."""
        return self._writer.broken or self._writer.full

    @property
    def short_of_space(self) -> str | None:
        """None while the disk has enough free space for new events, else how much is missing."""
        refusal = self._disk_space.refusal()
        return None if refusal is None else str(refusal)

    async def probe(self) -> None:
        """Try a durable write, to notice when a full disk has space again; raises as any write."""

        def write(connection: apsw.Connection, counters: RunCounters) -> None:
            connection.execute(_PROBE)
            self._disk_space.measure()

        await self._call(write)
