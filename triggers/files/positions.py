"""The files that a trigger has emitted and that still exist, as its stored positions.

One position for each file: its path below the root, percent-encoded so that every byte survives as
text, and `inode size mtime_ns generation`. A file that disappears loses its position, so there are
never more of them than files. Position `/generation` is a counter for the whole trigger that rises
whenever a position is removed or replaced. It is part of every event id: the same file moved back
by hand is another event. Position `/device` is the file system of the files, so that an unmounted
volume is not taken for an emptied folder.

Memory changes only by `apply`, with what the journal has stored. The watch and the actions after
runs both change positions: each holds `changing` from what it decides by to its `apply`, so that
neither removes what the other has just stored.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote_from_bytes, unquote_to_bytes

import anyio

from turnout.service.domain.trigger import Emitter

from .scan import Version

GENERATION = "/generation"
DEVICE = "/device"

_YIELD_EVERY = 2000  # rows loaded before the event loop gets its turn

PositionChanges = dict[str, str | None]


class FilePositions:
    """The positions of one trigger, in memory as in the journal."""

    def __init__(self) -> None:
        self.generation = 0
        self.device: str | None = None
        self.changing = anyio.Lock()  # not asyncio's, which serves only one event loop
        self._rows: dict[str, str] = {}
        self._loaded = False

    async def load(self, emit: Emitter) -> None:
        """Load what the journal holds."""
        stored = list((await emit.positions()).items())
        self._rows.clear()
        self.generation, self.device = 0, None
        for start in range(0, len(stored), _YIELD_EVERY):
            self.apply(dict(stored[start : start + _YIELD_EVERY]))
            await asyncio.sleep(0)
        self._loaded = True

    async def load_once(self, emit: Emitter) -> None:
        """Load unless something has been loaded already."""
        if not self._loaded:
            await self.load(emit)

    def apply(self, stored: Mapping[str, str | None]) -> None:
        """Apply positions that are on disk."""
        for partition, value in stored.items():
            if partition == GENERATION:
                self.generation = max(self.generation, int(value or 0))
            elif partition == DEVICE:
                self.device = value
            elif value is None:
                self._rows.pop(path_of(partition), None)
            else:
                self._rows[path_of(partition)] = value

    def __contains__(self, path: str) -> bool:
        return path in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def knows(self, path: str, version: Version) -> bool:
        """Whether this version of the file has been emitted."""
        row = self._rows.get(path)
        return row is not None and row.startswith(_prefix(version))

    def opening(self, path: str, version: Version) -> tuple[int, PositionChanges]:
        """Return the generation of the file's next event, and what to store with it."""
        if path not in self._rows:
            generation, rows = self.generation, PositionChanges()
        else:
            generation = self.generation + 1
            rows = {GENERATION: str(generation)}
        rows[partition_of(path)] = f"{_prefix(version)}{generation}"
        return generation, rows

    def closing(self, paths: Iterable[str]) -> PositionChanges:
        """Return what to store when these files are gone."""
        rows: PositionChanges = {partition_of(path): None for path in paths}
        rows[GENERATION] = str(self.generation + 1)
        return rows


def _prefix(version: Version) -> str:
    return f"{version.inode} {version.size} {version.mtime_ns} "


def partition_of(path: str) -> str:
    """Write a path as a partition: ASCII text that keeps every byte."""
    quoted = quote_from_bytes(os.fsencode(path), safe="/ !#$&'()*+,:;=@[]")
    return path if quoted == path else quoted  # most: one string for all who remember it


def path_of(partition: str) -> str:
    """Read back what `partition_of` wrote."""
    return os.fsdecode(unquote_to_bytes(partition)) if "%" in partition else partition
