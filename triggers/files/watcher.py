"""Watches one folder: finds file versions, and notices when files are gone.

A walk of the folder, compared with the stored positions, decides. It is made at start, at every
rescan, and whenever notifications cannot be trusted (queue overflow, an error, a paused process).
Notifications only say where to look in between. There is one task, and one thread for everything
that touches the disk; walks are taken in slices, so a full folder blocks neither the event loop nor
fills the memory.

Not here: when a file that was found is emitted (`file_emitter`), and what happens to it after its
runs (`after_run_actions`).
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from inspect import GEN_RUNNING, getgeneratorstate

from turnout.service.domain.errors import TriggerError
from turnout.service.domain.trigger import Emitter
from turnout.service.telemetry.logs import get_logger

from .file_emitter import FileEmitter
from .file_version import displayed
from .notifications import Change, Disk, Notifications, NotificationsLost, OpenNotifier
from .plan import Plan
from .positions import FilePositions
from .progress import Progress
from .recording import MakeEvent, Recorder
from .refused_names import RefusedNames
from .renames import looks_renamed, stems
from .scan import (
    Identity,
    Other,
    Version,
    Walk,
    WalkReport,
    check_root,
    device_of,
    identity_of,
    is_inside,
    look,
    topmost,
)

_SLICE_FILES = 1000
_SLICE_SECONDS = 0.2
_GATHER_SECONDS = 0.1  # new folders come in groups: how long to collect them
_MISSING_SECONDS = 1.0
_POLL_SECONDS = 2.0
_STEP_SECONDS = (0.004, 0.05)  # the pause of the notifier: while files wait; at most

log = get_logger("turnout.files")


class Watching:
    """One trigger's watch over its folder, from start to cancel."""

    def __init__(
        self,
        plan: Plan,
        make_event: MakeEvent,
        positions: FilePositions,
        emit: Emitter,
        open_notifier: OpenNotifier,
    ) -> None:
        self._plan = plan
        self._pattern = plan.pattern
        self._root = plan.pattern.root
        self._positions = positions
        self._emit = emit
        self._disk = Disk()
        self._notifications = Notifications(self._root, emit, self._disk, open_notifier)
        self._recorder = Recorder(make_event, positions, emit)
        self._refused = RefusedNames(plan, emit)
        self._files = FileEmitter(plan, positions, emit, self._disk, self._recorder, self._refused)
        self._progress = Progress(emit, self._files, self._now)
        self._private: Identity | None = None
        self._new_folders: set[str] = set()
        self._extend_at: float | None = None
        self._unread: set[str] = set()
        self._rescan_at = 0.0
        self._walk_seconds = 0.0

    async def run(self) -> None:
        """Watch until cancelled; a missing folder is reported and waited for."""
        await self._positions.load(self._emit)
        try:
            while True:
                try:
                    await self._watch()
                except OSError as error:
                    reason = error.strerror or str(error)
                    self._emit.down(f"cannot watch {displayed(self._root)}: {reason}")
                except TriggerError as error:
                    self._emit.down(str(error))
                self._notifications.stop()
                await asyncio.sleep(min(_MISSING_SECONDS, self._plan.rescan_seconds))
        finally:
            self._notifications.stop()

    # ---- the watch

    async def _watch(self) -> None:
        await self._disk(check_root, self._root)
        await self._find_private()
        await self._watch_folders({""})
        await self._check_device()
        self._emit.up()
        await self._rescan()
        while True:
            await self._wait()
            await self._files.emit_settled()
            if self._extend_at is not None and self._now() >= self._extend_at:
                await self._extend()
            if self._now() >= self._rescan_at:
                await self._check_device()
                await self._rescan()
            self._files.report_lag()
            self._progress.report()

    async def _find_private(self) -> None:
        """Find the service's own data folder, whose files change with every event."""
        private = self._plan.private
        if private is None:
            return
        for folder in (self._root, *self._plan.targets):
            if await self._disk(is_inside, folder, private):
                raise TriggerError(
                    f"{displayed(folder)} is in the service's own data folder; choose another one"
                )
        self._private = await self._disk(identity_of, private)

    async def _wait(self) -> None:
        """Wait for notifications, or until something else is due."""
        moments = (self._rescan_at, self._files.next_due(), self._extend_at)
        until = min(moment for moment in moments if moment is not None)
        quick, idle = _STEP_SECONDS
        step = quick
        if not len(self._files):
            step = min(idle, max(quick, self._plan.settle_seconds / 10))
        try:
            await self._take(await self._notifications.wait(until - self._now(), step))
            self._files.removals.waited()
        except NotificationsLost:
            self._rescan_soon()
            if not self._notifications.works:
                await self._watch_folders(self._notifications.folders)

    async def _take(self, changes: list[tuple[Change, str]]) -> None:
        """Look at the names in notifications."""
        names = self._names(changes)
        left = {self._relative(name) for kind, name in changes if kind is Change.GONE}
        finished = {
            stem for path in left if not self._pattern.matches(path) for stem in stems(path)
        }
        gone: list[str] = []
        back: list[tuple[str, Version]] = []
        listed = [
            path
            for path, kind in names.items()
            if self._concerns(path) and (kind is not Change.GONE or path in self._positions)
        ]
        for start in range(0, len(listed), _SLICE_FILES):
            some = listed[start : start + _SLICE_FILES]
            for path, found in zip(some, await self._disk(look, self._root, some), strict=True):
                if found is Other.GONE:
                    gone.append(path)
                elif found is Other.FOLDER:
                    self._new_folder(path)
                elif found is Other.REFUSED:
                    self._refused.add({path})
                elif isinstance(found, Version) and self._pattern.matches(path):
                    known = path in left and path in self._positions
                    if known and self._files.removals.is_back(path, found):
                        gone.append(path)
                        back.append((path, found))
                        continue
                    renamed = names[path] is Change.ADDED and looks_renamed(path, found, finished)
                    self._files.see(path, found, renamed=renamed)
        await self._recorder.close(gone)
        for path, found in back:
            self._files.see(path, found)

    def _names(self, changes: list[tuple[Change, str]]) -> dict[str, Change]:
        """Return the last change of each name in a batch, relative to the root.

        The order within a batch is lost. A name that both appeared and vanished counts as present,
        and a known one as vanished before (`Removals`).
        """
        names: dict[str, Change] = {}
        for kind, absolute in changes:
            path = self._relative(absolute)
            if kind is Change.GONE:
                if self._notifications.forget(path):
                    self._rescan_soon()
                names.setdefault(path, kind)
            elif path in self._files:
                self._files.touched(path)
            elif path:
                names[path] = Change.ADDED if names.get(path) is Change.ADDED else kind
        return names

    def _relative(self, absolute: str) -> str:
        return absolute.removeprefix(self._root).lstrip("/")

    def _concerns(self, path: str) -> bool:
        if path.count("/") > self._plan.max_depth:
            return False
        if any(path == away or path.startswith(f"{away}/") for away in self._plan.avoid):
            return False
        return self._pattern.matches(path) or bool(self._pattern.state_of(path))

    # ---- walks

    async def _rescan(self) -> None:
        """Walk the whole folder: find new files, close vanished ones, watch the folders."""
        began = self._now()
        report, seen = WalkReport(), set[str]()
        await self._walk("", report, seen)
        if "" not in report.unread:
            unread = tuple(f"{folder}/" for folder in report.unread)
            absent = [path for path in self._positions if path not in seen]
            await self._close([path for path in absent if not path.startswith(unread)])
        if report.unread - self._unread:
            log.warning("folder.unreadable", root=displayed(self._root), folders=len(report.unread))
        self._unread = report.unread
        self._refused.replace(report.refused)
        self._walk_seconds = self._now() - began
        self._new_folders |= report.folders.keys() - self._notifications.folders
        if not self._plan.poll and (
            not self._notifications.covers(report.folders, report.undecodable)
            or self._notifications.retry_is_due(self._now())
        ):
            self._notifications.folders &= report.folders.keys()
            self._notifications.undecodable = report.undecodable
            await self._extend()
        self._rescan_at = self._now() + self._pause()
        self._progress.scanned(began, self._files.waiting())

    def _pause(self) -> float:
        """Return how long to wait for the next walk: briefly, while some folder is unwatched."""
        if self._plan.poll or self._notifications.is_complete:
            return self._plan.rescan_seconds
        # Walks of a large tree must not take all of the CPU.
        return min(max(_POLL_SECONDS, 4 * self._walk_seconds), self._plan.rescan_seconds)

    async def _close(self, absent: list[str]) -> None:
        """Close files that a walk did not meet, after a look has confirmed that they are gone."""
        for start in range(0, len(absent), _SLICE_FILES):
            some = absent[start : start + _SLICE_FILES]
            looks = zip(some, await self._disk(look, self._root, some), strict=True)
            await self._recorder.close(
                path
                for path, found in looks
                if isinstance(found, Other) and found is not Other.UNKNOWN
            )

    def _rescan_soon(self) -> None:
        # Not at once: several reasons share one walk, and walks must not take all of the CPU.
        self._rescan_at = min(self._rescan_at, self._now() + max(0.1, 2 * self._walk_seconds))

    async def _check_device(self) -> None:
        """Refuse to take an unmounted volume for a folder whose files were all removed."""
        self._recorder.device = device = await self._disk(device_of, self._root)
        if device == self._positions.device or not len(self._positions):
            return
        if not await self._disk(lambda: any(True for _ in self._walker("", WalkReport()))):
            raise TriggerError(
                f"{displayed(self._root)} is empty and on another file system than its "
                f"{len(self._positions)} known files: is its volume mounted?"
            )
        await self._recorder.move_to_device()

    async def _walk(self, below: str, report: WalkReport, seen: set[str]) -> None:
        """Walk at and below a folder; `seen` collects the files that it met."""
        walker = self._walker(below, report)
        try:
            while (part := await self._disk(self._slice, walker, seen)) is not None:
                for path, version in part:
                    self._files.see(path, version)
                self._files.report_lag()
                await self._files.emit_settled()
        finally:
            # After a cancel the last slice may still be running in its thread.
            if getgeneratorstate(walker) != GEN_RUNNING:
                walker.close()

    def _walker(self, below: str, report: WalkReport) -> Walk:
        return self._plan.walk(report, below=below, private=self._private)

    def _slice(self, walker: Walk, seen: set[str]) -> list[tuple[str, Version]] | None:
        """Take the next files that are not emitted off a walk; None at its end."""
        part: list[tuple[str, Version]] = []
        until = time.monotonic() + _SLICE_SECONDS
        for path, version in walker:
            # Every file, emitted or not: it may be emitted, and have a position, before the end.
            seen.add(path)
            if not self._positions.knows(path, version):
                part.append((path, version))
            if len(part) >= _SLICE_FILES or time.monotonic() > until:
                return part
        return part or None

    # ---- folders

    def _new_folder(self, path: str) -> None:
        if path not in self._notifications.folders and self._pattern.state_of(path):
            self._new_folders.add(path)
            if self._extend_at is None:
                self._extend_at = self._now() + _GATHER_SECONDS

    async def _extend(self) -> None:
        """Watch new folders, and only then look into them, so that nothing is missed in between."""
        self._extend_at = None
        while True:
            fresh, self._new_folders = self._new_folders - self._notifications.folders, set()
            await self._watch_folders(self._notifications.folders | fresh)
            for folder in topmost(fresh):
                report = WalkReport()
                with suppress(FileNotFoundError):
                    await self._walk(folder, report, set())
                self._refused.add(report.refused)
                self._notifications.undecodable |= report.undecodable
                self._new_folders |= report.folders.keys() - self._notifications.folders
            if not self._new_folders:
                return

    async def _watch_folders(self, folders: set[str]) -> None:
        if not self._plan.poll:
            await self._notifications.watch(folders, self._now())
            if not self._notifications.is_complete:
                self._rescan_at = min(self._rescan_at, self._now() + self._pause())

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
