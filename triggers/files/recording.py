"""Writes to the journal: events of files with their positions, and the removal of positions.

While the journal refuses (too many runs, a full disk, a paused trigger) the trigger reports itself
down and waits here; nothing is lost and nothing piles up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from turnout.service.domain.errors import JournalFull, Overloaded
from turnout.service.domain.event import Event
from turnout.service.domain.trigger import Emitter
from turnout.service.telemetry.logs import get_logger

from .file_version import FileVersion
from .positions import DEVICE, FilePositions, PositionChanges

log = get_logger("turnout.files")

BATCH = 500
"""Files in one transaction."""

_RETRY_SECONDS = (0.1, 5.0)


MakeEvent = Callable[[FileVersion, datetime], Event]
"""Makes the event of a file version."""


class Recorder:
    """Writes one folder's files to the journal; the positions follow what was stored."""

    def __init__(self, make_event: MakeEvent, positions: FilePositions, emit: Emitter) -> None:
        self.device = ""
        self._make_event = make_event
        self._positions = positions
        self._emit = emit
        self._is_down = False

    async def open(self, files: Sequence[FileVersion]) -> bool:
        """Emit these files; False when the journal refused, after a wait: look at them again."""
        return await self._store(lambda: self._opening(files))

    def _opening(self, files: Sequence[FileVersion]) -> tuple[list[Event], PositionChanges]:
        events: list[Event] = []
        positions: PositionChanges = {}
        time = self._emit.now()
        for file in files:
            changed = file.path in self._positions
            generation, rows = self._positions.opening(file.path, file.version)
            positions |= rows
            event_file = file._replace(generation=generation, changed=changed)
            events.append(self._make_event(event_file, time))
        if self._positions.device != self.device:
            positions[DEVICE] = self.device
        return events, positions

    async def close(self, paths: Iterable[str]) -> None:
        """Remove the positions of files that are gone; returns when that is done."""
        listed = [path for path in paths if path in self._positions]
        for start in range(0, len(listed), BATCH):
            some = listed[start : start + BATCH]
            while not await self._store(lambda: ([], self._positions.closing(some))):  # noqa: B023  awaited here
                pass

    async def move_to_device(self) -> None:
        """Store that the files are on another file system than before."""
        while not await self._store(lambda: ([], {DEVICE: self.device})):
            pass

    async def _store(self, decide: Callable[[], tuple[list[Event], PositionChanges]]) -> bool:
        try:
            async with self._positions.changing:
                events, positions = decide()
                receipts = await self._emit(events, positions)
                self._positions.apply(positions)
        except (Overloaded, JournalFull) as error:
            self._emit.down(str(error))
            self._is_down = True
            shortest, longest = _RETRY_SECONDS
            wait = error.retry_after_seconds if isinstance(error, Overloaded) else shortest
            await asyncio.sleep(min(max(wait, shortest), longest))
            return False
        for event, receipt in zip(events, receipts, strict=True):
            if receipt.duplicate:  # it starts nothing, so `then=` leaves it where it is
                log.info("file.duplicate", path=event.subject, event=receipt.event)
        if self._is_down:
            self._is_down = False
            self._emit.up()
        return True
