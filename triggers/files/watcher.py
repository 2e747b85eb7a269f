"""Watches one folder: finds file versions, waits until they are at rest, emits each one once.

The truth is a walk of the folder compared with the ledger, made at start, at every rescan, and
whenever notifications cannot be trusted (queue overflow, an error, a process that was paused).
Notifications only say where to look in between. One task, and one thread at a time for everything
that touches the disk; walks are taken in slices, so neither the loop nor the memory feels a full
folder.

Not here: what happens to a file once its runs have ended (`endings`).
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from inspect import GEN_RUNNING, getgeneratorstate

from turnout.service.domain.errors import TriggerError
from turnout.service.domain.trigger import Emitter
from turnout.service.telemetry.logs import get_logger

from .file_version import Sighting, displayed
from .ledger import Ledger
from .notifications import Disk, Hearing, HintsLost, OpenNotifier, Sign
from .plan import Plan
from .recording import BATCH, Recorder
from .removals import Removals
from .renames import looks_renamed, stems
from .scan import (
    Identity,
    Inspection,
    Other,
    Tour,
    Version,
    Walk,
    check_root,
    device_of,
    identity_of,
    inspect,
    is_inside,
    look,
    topmost,
)
from .settle_timer import Settling

WAITING = "waiting files"
"""The lag partition that counts files found and not yet emitted."""

_SLICE_FILES = 1000
_SLICE_SECONDS = 0.2
_BREATH_SECONDS = 0.1  # folders come in crowds: how long to gather them before watching them
_AWAY_SECONDS = 1.0
_POLL_SECONDS = 2.0
_NAMED = 3  # refused names that a log line shows
_STEP_SECONDS = (0.004, 0.05)  # how often the notifier looks: while files wait; at most, when idle

log = get_logger("turnout.files")


class Watching:
    """One trigger's watch over its folder, from start to cancel."""

    def __init__(
        self, plan: Plan, ledger: Ledger, emit: Emitter, open_notifier: OpenNotifier
    ) -> None:
        self._plan = plan
        self._pattern = plan.pattern
        self._root = plan.pattern.root
        self._ledger = ledger
        self._emit = emit
        self._disk = Disk()
        self._hearing = Hearing(self._root, emit, self._disk, open_notifier)
        self._recorder = Recorder(self._root, ledger, emit)
        self._settling = Settling(plan.settle_seconds, trust_stamps=not plan.poll)
        self._private: Identity | None = None
        self._removals = Removals()
        self._new_folders: set[str] = set()
        self._extend_at: float | None = None
        self._refused: set[str] = set()
        self._unread: set[str] = set()
        self._rescan_at = 0.0
        self._walk_seconds = 0.0
        self._lag = 0

    async def run(self) -> None:
        """Watch until cancelled; a folder that is not there is reported and waited for."""
        await self._ledger.load(self._emit)
        try:
            while True:
                try:
                    await self._watch()
                except OSError as error:
                    reason = error.strerror or str(error)
                    self._emit.down(f"cannot watch {displayed(self._root)}: {reason}")
                except TriggerError as error:
                    self._emit.down(str(error))
                self._hearing.stop()
                await asyncio.sleep(min(_AWAY_SECONDS, self._plan.rescan_seconds))
        finally:
            self._hearing.stop()

    # ---- the watch

    async def _watch(self) -> None:
        await self._disk(check_root, self._root)
        await self._spare_private()
        await self._listen({""})
        await self._check_device()
        self._emit.up()
        await self._rescan()
        while True:
            await self._hear()
            await self._settle()
            if self._extend_at is not None and self._now() >= self._extend_at:
                await self._extend()
            if self._now() >= self._rescan_at:
                await self._check_device()
                await self._rescan()
            self._report_lag()

    async def _spare_private(self) -> None:
        """Find the service's own folder, whose files change with every event."""
        private = self._plan.private
        if private is None:
            return
        for folder in (self._root, *self._plan.targets):
            if await self._disk(is_inside, folder, private):
                raise TriggerError(
                    f"{displayed(folder)} is in the service's own data folder; choose another one"
                )
        self._private = await self._disk(identity_of, private)

    async def _hear(self) -> None:
        """Wait for notifications, or until something else is to be done."""
        moments = (self._rescan_at, self._settling.next_due(), self._extend_at)
        until = min(moment for moment in moments if moment is not None)
        quick, idle = _STEP_SECONDS
        step = quick
        if not len(self._settling):
            step = min(idle, max(quick, self._plan.settle_seconds / 10))
        try:
            await self._take(await self._hearing.wait(until - self._now(), step))
            self._removals.are_told()
        except HintsLost:
            self._rescan_soon()
            if not self._hearing.works:
                await self._listen(self._hearing.folders)

    async def _take(self, signs: list[tuple[Sign, str]]) -> None:
        """Look at the names that notifications spoke of."""
        names = self._names(signs)
        left = {self._relative(name) for sign, name in signs if sign is Sign.GONE}
        finished = {
            stem for path in left if not self._pattern.matches(path) for stem in stems(path)
        }
        gone: list[str] = []
        back: list[tuple[str, Version]] = []
        listed = [
            path
            for path, sign in names.items()
            if self._concerns(path) and (sign is not Sign.GONE or path in self._ledger)
        ]
        for start in range(0, len(listed), _SLICE_FILES):
            some = listed[start : start + _SLICE_FILES]
            for path, found in zip(some, await self._disk(look, self._root, some), strict=True):
                if found is Other.GONE:
                    gone.append(path)
                elif found is Other.FOLDER:
                    self._new_folder(path)
                elif found is Other.REFUSED:
                    self._refuse({path})
                elif isinstance(found, Version) and self._pattern.matches(path):
                    known = path in left and path in self._ledger
                    if known and self._removals.is_back(path, found):
                        gone.append(path)
                        back.append((path, found))
                        continue
                    placed = names[path] is Sign.ADDED and looks_renamed(path, found, finished)
                    self._see(path, found, placed=placed)
        await self._recorder.close(gone)
        for path, found in back:
            self._see(path, found)

    def _names(self, signs: list[tuple[Sign, str]]) -> dict[str, Sign]:
        """Return the latest a batch says of each name, relative to the root.

        The order within a batch is lost; a name that both came and went is taken for there, and
        a known one for gone before (`Removals`).
        """
        names: dict[str, Sign] = {}
        for sign, absolute in signs:
            path = self._relative(absolute)
            if sign is Sign.GONE:
                if self._hearing.forget(path):
                    self._rescan_soon()
                names.setdefault(path, sign)
            elif path and self._settling.get(path) is not None:
                self._settling.touched(path, now=self._now(), wall_ns=self._wall_ns())
            elif path:
                names[path] = Sign.ADDED if names.get(path) is Sign.ADDED else sign
        return names

    def _relative(self, absolute: str) -> str:
        return absolute.removeprefix(self._root).lstrip("/")

    def _concerns(self, path: str) -> bool:
        if path.count("/") > self._plan.max_depth:
            return False
        if any(path == away or path.startswith(f"{away}/") for away in self._plan.avoid):
            return False
        return self._pattern.matches(path) or bool(self._pattern.place(path))

    def _see(self, path: str, version: Version, *, placed: bool = False) -> None:
        if not self._ledger.knows(path, version):
            now, wall_ns = self._now(), self._wall_ns()
            self._settling.see(path, version, now=now, wall_ns=wall_ns, placed=placed)

    # ---- from rest to event

    async def _settle(self) -> None:
        """Emit every file that is at rest by now."""
        while due := self._settling.due(self._now(), BATCH):
            looks = await self._disk(inspect, self._root, due, ask_closed=self._any_placed(due))
            ready = [
                sighting
                for path, seen in zip(due, looks, strict=True)
                if (sighting := self._judge(path, seen)) is not None
            ]
            if ready and await self._recorder.open(ready):
                for sighting in ready:
                    self._settling.drop(sighting.path)
                    self._removals.emitted(sighting.path, sighting.version)
                self._count("unreadable", sum(sighting.error is not None for sighting in ready))

    def _any_placed(self, paths: list[str]) -> bool:
        candidates = (self._settling.get(path) for path in paths)
        return any(candidate is not None and candidate.placed for candidate in candidates)

    def _judge(self, path: str, seen: Inspection) -> Sighting | None:
        """Decide what the last look before the event means."""
        candidate = self._settling.get(path)
        if candidate is None:
            return None
        if not isinstance(seen.found, Version):
            # A folder that cannot be read just now is tried again by and by, then by the rescan.
            if seen.found is not Other.UNKNOWN or not self._put_off(path):
                self._settling.drop(path)
            if seen.found is Other.REFUSED:
                self._refuse({path})
            return None
        if self._ledger.knows(path, seen.found):
            self._settling.drop(path)
            return None
        if seen.found != candidate.version:
            self._see(path, seen.found)
            return None
        if seen.error is not None:
            return None if self._put_off(path) else Sighting(path, seen.found, error=seen.error)
        if candidate.placed and not seen.closed:
            self._settling.touched(path, now=self._now(), wall_ns=self._wall_ns())
            return None
        return Sighting(path, seen.found)

    def _put_off(self, path: str) -> bool:
        return self._settling.unreadable(path, now=self._now())

    # ---- the truth

    async def _rescan(self) -> None:
        """Walk the whole folder: find what is new, close what is gone, watch what is there."""
        began = self._now()
        tour, seen = Tour(), set[str]()
        await self._walk("", tour, seen)
        if "" not in tour.unread:
            unread = tuple(f"{folder}/" for folder in tour.unread)
            absent = [path for path in self._ledger if path not in seen]
            await self._close([path for path in absent if not path.startswith(unread)])
        if tour.unread - self._unread:
            log.warning("folder.unreadable", root=displayed(self._root), folders=len(tour.unread))
        self._unread = tour.unread
        self._refused &= tour.refused
        self._refuse(tour.refused)
        self._walk_seconds = self._now() - began
        self._new_folders |= tour.folders.keys() - self._hearing.folders
        if not self._plan.poll and (
            not self._hearing.is_about(tour.folders, tour.undecodable)
            or self._hearing.wants_retry(self._now())
        ):
            self._hearing.folders &= tour.folders.keys()
            self._hearing.undecodable = tour.undecodable
            await self._extend()
        self._rescan_at = self._now() + self._pause()

    def _pause(self) -> float:
        """Return how long to wait for the next walk: briefly, where some folder is not heard of."""
        if self._plan.poll or self._hearing.is_whole:
            return self._plan.rescan_seconds
        # A walk of a large tree must not eat the machine.
        return min(max(_POLL_SECONDS, 4 * self._walk_seconds), self._plan.rescan_seconds)

    async def _close(self, absent: list[str]) -> None:
        """Close what a walk did not meet, once a look has confirmed that it is gone."""
        for start in range(0, len(absent), _SLICE_FILES):
            some = absent[start : start + _SLICE_FILES]
            looks = zip(some, await self._disk(look, self._root, some), strict=True)
            await self._recorder.close(
                path
                for path, found in looks
                if isinstance(found, Other) and found is not Other.UNKNOWN
            )

    def _rescan_soon(self) -> None:
        # Not at once: a crowd of reasons is one walk, and walks must not eat the machine.
        self._rescan_at = min(self._rescan_at, self._now() + max(0.1, 2 * self._walk_seconds))

    async def _check_device(self) -> None:
        """Refuse to take an unmounted volume for a folder whose files were all removed."""
        self._recorder.device = device = await self._disk(device_of, self._root)
        if device == self._ledger.device or not len(self._ledger):
            return
        if not await self._disk(lambda: any(True for _ in self._walker("", Tour()))):
            raise TriggerError(
                f"{displayed(self._root)} is empty and on another file system than its "
                f"{len(self._ledger)} known files: is its volume mounted?"
            )
        await self._recorder.move_to_device()

    async def _walk(self, below: str, tour: Tour, seen: set[str]) -> None:
        """Walk at and below a folder; `seen` gathers the files the ledger has rows for."""
        walker = self._walker(below, tour)
        try:
            while (part := await self._disk(self._slice, walker, seen)) is not None:
                for path, version in part:
                    self._see(path, version)
                self._report_lag()
                await self._settle()
        finally:
            if getgeneratorstate(walker) != GEN_RUNNING:  # a cancelled slice runs on, and ends
                walker.close()

    def _walker(self, below: str, tour: Tour) -> Walk:
        return self._plan.walk(tour, below=below, private=self._private)

    def _slice(self, walker: Walk, seen: set[str]) -> list[tuple[str, Version]] | None:
        """Take the next files off a walk that are not emitted yet; None at its end."""
        part: list[tuple[str, Version]] = []
        until = time.monotonic() + _SLICE_SECONDS
        for path, version in walker:
            # All of them: a file may be emitted, and have a row, before the walk ends.
            seen.add(path)
            if not self._ledger.knows(path, version):
                part.append((path, version))
            if len(part) >= _SLICE_FILES or time.monotonic() > until:
                return part
        return part or None

    # ---- folders

    def _new_folder(self, path: str) -> None:
        if path not in self._hearing.folders and self._pattern.place(path):
            self._new_folders.add(path)
            if self._extend_at is None:
                self._extend_at = self._now() + _BREATH_SECONDS

    async def _extend(self) -> None:
        """Watch new folders, and only then look into them: nothing falls in between."""
        self._extend_at = None
        while True:
            fresh, self._new_folders = self._new_folders - self._hearing.folders, set()
            await self._listen(self._hearing.folders | fresh)
            for folder in topmost(fresh):
                tour = Tour()
                with suppress(FileNotFoundError):
                    await self._walk(folder, tour, set())
                self._refuse(tour.refused)
                self._hearing.undecodable |= tour.undecodable
                self._new_folders |= tour.folders.keys() - self._hearing.folders
            if not self._new_folders:
                return

    async def _listen(self, folders: set[str]) -> None:
        if not self._plan.poll:
            await self._hearing.listen(folders, self._now())
            if not self._hearing.is_whole:
                self._rescan_at = min(self._rescan_at, self._now() + self._pause())

    # ---- what others see of it

    def _refuse(self, paths: set[str]) -> None:
        """Count and name what is no regular file or lies too deep, each once while it is there."""
        if fresh := paths - self._refused:
            log.warning(
                "files.refused",
                root=displayed(self._root),
                count=len(fresh),
                names=[displayed(path) for path in sorted(fresh)[:_NAMED]],
                reason=f"not a regular file (a link, a pipe), or more than {self._plan.max_depth} "
                "folders deep",
            )
            self._count("refused", len(fresh))
            self._refused |= fresh

    def _count(self, result: str, count: int) -> None:
        if count:
            self._emit.reject(result, count)

    def _report_lag(self) -> None:
        if len(self._settling) != self._lag:
            self._lag = len(self._settling)
            self._emit.lag(WAITING, self._lag)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _wall_ns(self) -> int:
        return int(self._emit.now().timestamp() * 1e9)
