"""How much disk the journal uses and what is left, looked at a few times a second at most.

Pages freed by pruning count as room, both ways: they are written again before the file grows.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import apsw

from turnout.service.domain.errors import Overloaded

from .files import FILE_NAME

_LOOK_SECONDS = 0.25


class Room:
    """The disk as the writing thread last saw it; `used_bytes` may be read from any thread."""

    def __init__(self, connection: apsw.Connection, folder: Path, min_free_bytes: int) -> None:
        self._connection = connection
        self._folder = folder
        self._log = folder / f"{FILE_NAME}-wal"
        self._min_free = min_free_bytes
        self._looked = 0.0
        self._free_bytes = 0
        self.used_bytes = 0
        self.look()

    def look(self, *, at_once: bool = True) -> None:
        """Measure; unless `at_once`, only when the last measure is old."""
        instant = time.monotonic()
        if not at_once and instant - self._looked < _LOOK_SECONDS:
            return
        self._looked = instant
        pragma = self._connection.pragma
        page_bytes = int(pragma("page_size"))
        reusable = int(pragma("freelist_count")) * page_bytes
        log_bytes = self._log.stat().st_size if self._log.exists() else 0
        self.used_bytes = int(pragma("page_count")) * page_bytes - reusable + log_bytes
        disk = os.statvfs(self._folder)
        self._free_bytes = disk.f_bavail * disk.f_frsize + reusable

    def refusal(self) -> Overloaded | None:
        """Return why nothing new is taken in, or None while there is room."""
        if self._free_bytes >= self._min_free:
            return None
        return Overloaded(
            f"the disk has {self._free_bytes} bytes free, less than min_free_bytes"
            f" ({self._min_free}); free some"
        )
