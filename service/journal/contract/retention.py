"""What maintenance needs of a journal: retention, counts, and the space on disk."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

from turnout.service.journal.records import BackupStatus

from .writing import Writable


class Clearing(Protocol):
    """Clearing the cache of results, for operators and when they have expired."""

    async def clear_cache(
        self, *, task: str | None = None, over_by: datetime | None = None, limit: int = 1_000_000
    ) -> int:
        """Clear cached results, of one task or those expired by `over_by`; returns how many."""


class Retention(Writable, Clearing, Protocol):
    """Retention, counts, and the space on disk."""

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
        """Delete up to `limit` old runs with steps, then events left without runs; returns rows.

        The window of events that have one of their own ends at `now`, whatever `dedupe_before` is,
        and what rates count no more at `now` goes too.
        Call it until it returns 0. It never prunes unfinished runs, their events, positions, or
        dead letters whose undo has failed.
        """

    async def prune_oldest(self, limit: int) -> int:
        """Delete the oldest finished events whatever their age; returns rows."""

    async def prune_states(self, *, unused_since: datetime, now: datetime, limit: int) -> int:
        """Delete states of ordering keys that no run has had since; returns how many it looked at.

        It looks at up to `limit`; call it until it returns 0. The state of a flow without
        `ordered_by=` stays, and so does one whose key an unfinished run has: that is used `now`. A
        run uses its key until it ends, which is remembered when the run is deleted, so what a run
        that is not deleted yet has used may be older than it seems.
        """

    async def prune_alerts(self, *, ended_before: datetime, limit: int) -> int:
        """Delete up to `limit` alerts, and as many messages, that ended by then; returns rows.

        Call it until it returns 0. Open alerts, messages that wait and expectations stay.
        """

    async def prune_blobs(self) -> int | None:
        """Delete large results that no row names any more; returns how many bytes.

        None while a backup is made: nothing is deleted then, since the backup needs them.
        """

    def backup_status(self) -> BackupStatus | None:
        """Return how the backups of this journal go, None if none was made; not on the loop."""

    def counts(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Return (unfinished runs by state, dead letters by flow); exact, from memory."""

    def not_undone(self) -> Mapping[str, int]:
        """Return how many dead letters, by flow, have an undo that failed; exact, from memory."""

    async def last_recorded_at(self) -> datetime | None:
        """Return the latest instant among the newest event and runs; None in an empty journal."""

    def size_bytes(self) -> int:
        """Return the journal's size on disk, its log and large results included."""

    def free_bytes(self) -> int:
        """Ask the disk how much space the journal has left; not on the loop: a disk may hang."""

    @property
    def queued_writes(self) -> int:
        """How many writes are not committed yet; from memory."""

    @property
    def short_of_space(self) -> str | None:
        """None while the disk has enough free space for new events, else how much is missing."""
