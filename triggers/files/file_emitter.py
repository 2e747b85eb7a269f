"""Emits each file version once it is at rest and can be read.

A file is looked at once more just before it is emitted. One that has changed waits again; one that
cannot be read is retried, and then emitted with the reason.
"""

from __future__ import annotations

import asyncio

from turnout.service.domain.trigger import Emitter

from .file_content import Content, ContentReader
from .file_version import FileVersion
from .notifications import Disk
from .plan import Plan
from .positions import FilePositions
from .recording import BATCH, Recorder
from .refused_names import RefusedNames
from .removals import Removals
from .scan import Inspection, Other, Version, inspect
from .settle_timer import SettleTimer

_READING_SECONDS = 0.5

WAITING = "waiting files"
"""The lag partition that counts files found and not yet emitted."""


class FileEmitter:
    """The files of one trigger from when they are seen until they are emitted."""

    def __init__(
        self,
        plan: Plan,
        positions: FilePositions,
        emit: Emitter,
        disk: Disk,
        recorder: Recorder,
        refused: RefusedNames,
    ) -> None:
        self._root = plan.pattern.root
        self._positions = positions
        self._emit = emit
        self._disk = disk
        self._recorder = recorder
        self._refused = refused
        self._settle_timer = SettleTimer(plan.settle_seconds, trust_stamps=not plan.poll)
        self._by_content = plan.by_content
        self._lag = 0
        self.removals = Removals()

    def __len__(self) -> int:
        return len(self._settle_timer)

    def __contains__(self, path: str) -> bool:
        return self._settle_timer.get(path) is not None

    def waiting(self) -> list[str]:
        """Return the files that are not emitted yet."""
        return self._settle_timer.waiting()

    def next_due(self) -> float | None:
        """Return when `emit_settled` has something to do."""
        return self._settle_timer.next_due()

    def see(self, path: str, version: Version, *, renamed: bool = False) -> None:
        """Note a version that a look has found; it waits unless it was emitted already."""
        if not self._positions.knows(path, version):
            now, wall_ns = self._now(), self._wall_ns()
            self._settle_timer.see(path, version, now=now, wall_ns=wall_ns, renamed=renamed)

    def touched(self, path: str) -> None:
        """Note a change of a waiting file: it was not simply renamed into place."""
        self._settle_timer.touched(path, now=self._now(), wall_ns=self._wall_ns())

    async def emit_settled(self) -> None:
        """Emit every file that is at rest by now."""
        while due := self._settle_timer.due(self._now(), BATCH):
            looks = await self._disk(inspect, self._root, due, ask_closed=self._any_renamed(due))
            ready = [
                found
                for path, seen in zip(due, looks, strict=True)
                if (found := self._judge(path, seen)) is not None
            ]
            if self._by_content:
                ready = await self._read(ready)
            if ready and await self._recorder.open(ready):
                for found in ready:
                    self._settle_timer.drop(found.path)
                    self.removals.emitted(found.path, found.version)
                if unreadable := sum(found.error is not None for found in ready):
                    self._emit.reject("unreadable", unreadable)

    def report_lag(self) -> None:
        """Report how many files wait."""
        if len(self) != self._lag:
            self._lag = len(self)
            self._emit.lag(WAITING, self._lag)

    def _any_renamed(self, paths: list[str]) -> bool:
        candidates = (self._settle_timer.get(path) for path in paths)
        return any(candidate is not None and candidate.renamed for candidate in candidates)

    def _judge(self, path: str, seen: Inspection) -> FileVersion | None:
        """Decide from the last look whether the file becomes an event."""
        candidate = self._settle_timer.get(path)
        if candidate is None:
            return None
        if not isinstance(seen.found, Version):
            # A folder that cannot be read now is retried, and after that left to the rescan.
            if seen.found is not Other.UNKNOWN or not self._put_off(path):
                self._settle_timer.drop(path)
            if seen.found is Other.REFUSED:
                self._refused.add({path})
            return None
        if self._positions.knows(path, seen.found):
            self._settle_timer.drop(path)
            return None
        if seen.found != candidate.version:
            self.see(path, seen.found)
            return None
        if seen.error is not None:
            return None if self._put_off(path) else FileVersion(path, seen.found, error=seen.error)
        if candidate.renamed and not seen.closed:
            self.touched(path)
            return None
        return FileVersion(path, seen.found)

    async def _read(self, files: list[FileVersion]) -> list[FileVersion]:
        """Read files to their end, as many as a moment allows; the others stay due.

        Leaves out those that have changed meanwhile: they are looked at again.
        """
        ready: list[FileVersion] = []
        until = self._now() + _READING_SECONDS
        for file in files:
            if ready and self._now() > until:
                break
            content = None if file.error is None else Content(error=file.error)
            reader = ContentReader(self._root, file.path, file.version)
            while content is None:
                content = await self._disk(reader.step)
            if content.digest is not None:
                ready.append(file._replace(content=content.digest))
            elif content.error is not None and (file.error or not self._put_off(file.path)):
                ready.append(file._replace(error=content.error))
        return ready

    def _put_off(self, path: str) -> bool:
        return self._settle_timer.unreadable(path, now=self._now())

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _wall_ns(self) -> int:
        return int(self._emit.now().timestamp() * 1e9)
