"""Whether a journal can be written, and the way its process opens and ends it."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Protocol

from turnout.service.journal.records import NextWake


class Writable(Protocol):
    """Whether writes work."""

    @property
    def writable(self) -> str | None:
        """None while writes work, else the reason (disk full, broken)."""

    async def probe(self) -> None:
        """Try a durable write, to notice when a full disk has space again; raises as any write."""


class Lifecycle(Writable, Protocol):
    """What the process around a journal needs of it, from opening it to its end."""

    broken: asyncio.Event
    """Set once the disk failed for good, or the files are lost: end the process (exit 74)."""

    last_written_at: datetime | None
    """When the files were last changed before they were opened."""

    async def look_at_files(self) -> str | None:
        """Return what happened to the files of the open journal, None when nothing did.

        Otherwise the journal is given up: `broken` is set.
        """

    async def check(self) -> None:
        """Check a large journal for damage, which opening it did not."""

    def write_url(self, url: str) -> None:
        """Publish the address of this process, for the command line."""

    def write_next_wake(self, wake: NextWake | None) -> None:
        """Keep for the command line what comes next once this process has gone; None: it serves."""

    async def close(self) -> None:
        """Finish queued writes and release everything; may be called twice."""
