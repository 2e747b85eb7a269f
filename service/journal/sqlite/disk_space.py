"""How much disk the journal uses and how much is free, measured at most four times a second.

Pages freed by pruning count as free, not as used: SQLite reuses them before the file grows.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import apsw

from turnout.service.domain.errors import Overloaded

from .files import FILE_NAME

_MEASURE_SECONDS = 0.25


class DiskSpace:
    """The disk space the writing thread last measured; any thread may read what is public."""

    def __init__(self, connection: apsw.Connection, folder: Path, min_free_bytes: int) -> None:
        self._connection = connection
        self._folder = folder
        self._log = folder / f"{FILE_NAME}-wal"
        self._min_free = min_free_bytes
        self._measured = 0.0
        self._free_bytes = 0
        self._reusable_bytes = 0
        self.used_bytes = 0
        self.measure()

    def measure(self) -> None:
        """Measure now."""
        self._measured = time.monotonic()
        pragma = self._connection.pragma
        page_bytes = int(pragma("page_size"))
        self._reusable_bytes = int(pragma("freelist_count")) * page_bytes
        log_bytes = self._log.stat().st_size if self._log.exists() else 0
        self.used_bytes = int(pragma("page_count")) * page_bytes - self._reusable_bytes + log_bytes
        self._free_bytes = self.read_free_bytes()

    def read_free_bytes(self) -> int:
        """Return the free space as it is now, and the pages for reuse as last measured."""
        disk = os.statvfs(self._folder)
        return disk.f_bavail * disk.f_frsize + self._reusable_bytes

    def check(self) -> Overloaded | None:
        """Measure if the last measurement is old, and return `refusal`: for the writing thread."""
        if time.monotonic() - self._measured >= _MEASURE_SECONDS:
            self.measure()
        return None if self._free_bytes >= self._min_free else self.refusal()

    def refusal(self) -> Overloaded | None:
        """Return the error that refuses new events, or None while there is enough free space."""
        if self._free_bytes >= self._min_free:
            return None
        return Overloaded(
            f"the disk has {self._free_bytes} bytes free, less than min_free_bytes"
            f" ({self._min_free}); free some"
        )
