"""Writes what was found into the journal: events with their ledger rows, and rows of files gone.

While the journal takes nothing (too many runs, a full disk, a paused trigger) the trigger reports
itself down and waits here; nothing is forgotten and nothing piles up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from turnout.service.domain.errors import JournalFull, Overloaded
from turnout.service.domain.event import Event
from turnout.service.domain.trigger import Emitter

from .file_version import Sighting, file_event
from .ledger import DEVICE, Ledger, Positions

BATCH = 500
"""Files in one transaction."""

_RETRY_SECONDS = (0.1, 5.0)


class Recorder:
    """The way of one folder's files into the journal; the ledger follows what was stored."""

    def __init__(self, root: str, ledger: Ledger, emit: Emitter) -> None:
        self.device = ""
        self._root = root
        self._ledger = ledger
        self._emit = emit
        self._is_down = False

    async def open(self, sightings: Sequence[Sighting]) -> bool:
        """Emit these files; False when the journal refused, after a wait: look at them again."""
        events: list[Event] = []
        positions: Positions = {}
        time = self._emit.now()
        for sighting in sightings:
            changed = sighting.path in self._ledger
            generation, rows = self._ledger.opening(sighting.path, sighting.version)
            positions |= rows
            found = sighting._replace(generation=generation, changed=changed)
            events.append(file_event(self._root, found, time=time))
        if self._ledger.device != self.device:
            positions[DEVICE] = self.device
        return await self._store(events, positions)

    async def close(self, paths: Iterable[str]) -> None:
        """Remove the rows of files that are gone; returns when it is done."""
        listed = [path for path in paths if path in self._ledger]
        for start in range(0, len(listed), BATCH):
            some = listed[start : start + BATCH]
            while not await self._store([], self._ledger.closing(some)):
                pass

    async def move_to_device(self) -> None:
        """Note that the files are on another file system than before."""
        while not await self._store([], {DEVICE: self.device}):
            pass

    async def _store(self, events: Sequence[Event], positions: Positions) -> bool:
        try:
            await self._emit(events, positions)
        except (Overloaded, JournalFull) as error:
            self._emit.down(str(error))
            self._is_down = True
            shortest, longest = _RETRY_SECONDS
            wait = error.retry_after_seconds if isinstance(error, Overloaded) else shortest
            await asyncio.sleep(min(max(wait, shortest), longest))
            return False
        self._ledger.apply(positions)
        if self._is_down:
            self._is_down = False
            self._emit.up()
        return True
