"""Notifies of changes in a set of folders, and says when it may have missed some.

Only folders that a walk has read are watched, each by itself: a link or a mount that appears among
them is never followed. Where the machine gives no notifications (a limit is reached, a network
share has none) the folders are reported as unwatched and only walks remain. The same holds for a
single folder with a name that is not UTF-8: the library can report nothing about it.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Protocol, TypeVar

from anyio import CapacityLimiter, to_thread

from turnout.service.domain.handover import handed_over
from turnout.service.domain.trigger import Emitter
from turnout.service.telemetry.logs import get_logger

from .file_version import displayed
from .scan import Identity, identity_of, is_text

UNWATCHED = "unwatched folders"
"""The lag partition that counts folders without notifications."""

_HEARTBEAT_SECONDS = 1.0
_RETRY_SECONDS = 30.0
_DRAIN_STEP_SECONDS = 0.004
_PATH_MAX = 4096
_CLOSING_SECONDS = 0.05  # a thread of its own closes the instance

T = TypeVar("T")

log = get_logger("turnout.files")


class Change(Enum):
    """What a notification says of a name: it appeared, its file was written to, it vanished."""

    ADDED = "added"
    WRITTEN = "written"
    GONE = "gone"


class NotificationsLost(Exception):
    """Raised when notifications may be missing: only a walk tells what is there."""


class Notifier(Protocol):
    """Notifications of a fixed set of folders; they may be missing, late or repeated."""

    def wait(self, timeout_seconds: float, step_seconds: float) -> list[tuple[Change, str]]:
        """Block until something changes; returns changes with absolute paths.

        Raises `NotificationsLost`.
        """

    def stop(self) -> None:
        """Make a `wait` in another thread return at once, and stop watching."""


OpenNotifier = Callable[[Sequence[str]], Notifier]
"""Starts watching folders, given by absolute path; raises `OSError`."""


class Disk:
    """The one thread in which a trigger touches the disk."""

    def __init__(self) -> None:
        self._thread = CapacityLimiter(1)

    async def __call__(self, call: Callable[..., T], *arguments: object, **named: object) -> T:
        """Call in the thread; a cancel does not wait for it, since a network share may hang."""
        return await to_thread.run_sync(
            lambda: call(*arguments, **named), abandon_on_cancel=True, limiter=self._thread
        )

    async def open(self, call: Callable[[], T], close: Callable[[T], object]) -> T:
        """Call in the thread; after a cancel, `close` what the call may still return."""
        return await handed_over(self, call, close)


class Notifications:
    """The notifications of one trigger: `folders` are the folders it covers, relative to the root.

    `undecodable` are those of them that are left to walks (`WalkReport.undecodable`).
    """

    def __init__(self, root: str, emit: Emitter, disk: Disk, open_notifier: OpenNotifier) -> None:
        self.folders: set[str] = set()
        self.undecodable: set[str] = set()
        self._watched: dict[str, Identity | None] = {}
        self._root = root
        self._emit = emit
        self._disk = disk
        self._open = open_notifier
        self._notifier: Notifier | None = None
        self._retiring: list[Notifier] = []
        self._retry_at = 0.0
        self._warned = False
        self._heartbeat: asyncio.TimerHandle | None = None
        self._heartbeat_at = 0.0
        self._was_paused = False
        self._missed_changes = False

    @property
    def works(self) -> bool:
        """Whether there are notifications at all."""
        return self._notifier is not None

    @property
    def is_complete(self) -> bool:
        """Whether every folder is watched; the others must be walked often."""
        return len(self._watched) == len(self.folders)

    def retry_is_due(self, now: float) -> bool:
        """Whether it is time to try to get notifications again."""
        return self._notifier is None and now >= self._retry_at

    def covers(self, folders: Mapping[str, Identity], undecodable: set[str]) -> bool:
        """Whether exactly these folders are watched, and not others that had their names."""
        return (
            self.folders == folders.keys()
            and self.undecodable == undecodable
            and all(folders[name] == identity for name, identity in self._watched.items())
        )

    async def watch(self, folders: set[str], now: float) -> None:
        """Watch exactly these folders from now on, or none at all (`works`)."""
        self.folders = set(folders)
        self._watched = {}
        if self._heartbeat is None:
            self._heartbeat_at = asyncio.get_running_loop().time()
            self._keep_heartbeat()
        paths = {
            folder: f"{self._root}/{folder}" if folder else self._root
            for folder in sorted(folders.difference(self.undecodable))
        }
        watchable = {folder: path for folder, path in paths.items() if _can_be_watched(path)}
        if self._notifier is not None:
            # The next `wait` collects its remaining changes: by then its own thread has read what
            # the kernel had for it.
            self._retiring.append(self._notifier)
            self._notifier = None
        try:
            if watchable:
                await self._start(watchable)
                # Gone or unreadable by now: a walk or a notification of its parent brings it back.
                self.folders -= watchable.keys() - self._watched.keys()
            self._warned = False
        except OSError as error:
            self._give_up(error, now)
        self._emit.lag(UNWATCHED, len(self.folders) - len(self._watched))

    async def _start(self, paths: Mapping[str, str]) -> None:
        try:
            await self._open_notifier(paths)
        except OSError as error:
            if error.errno != errno.EMFILE or not self._retiring:
                raise
            # Our own old notifier may hold the last instance.
            self._retire()
            self._missed_changes = True
            await asyncio.sleep(_CLOSING_SECONDS)
            await self._open_notifier(paths)

    async def _open_notifier(self, paths: Mapping[str, str]) -> None:
        opened: tuple[Notifier, dict[str, Identity | None]] = await self._disk.open(
            lambda: self._watch(paths), lambda unused: unused[0].stop()
        )
        self._notifier, self._watched = opened

    def _watch(self, paths: Mapping[str, str]) -> tuple[Notifier, dict[str, Identity | None]]:
        # Identified before they are watched: one that is replaced in between counts as unwatched.
        watched = {
            folder: identity_of(path) for folder, path in paths.items() if os.access(path, os.R_OK)
        }
        return self._open([paths[folder] for folder in watched]), watched

    def _give_up(self, error: OSError, now: float) -> None:
        if isinstance(error, FileNotFoundError):  # a folder vanished: the walk will tell
            self._retry_at = now
            return
        self._retry_at = now + _RETRY_SECONDS
        if not self._warned:
            self._warned = True
            log.warning("folder.polled", folder=displayed(self._root), reason=str(error))

    def _keep_heartbeat(self) -> None:
        """Notice that the process was paused: the queue of the kernel may have overflowed."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._heartbeat_at > 2 * _HEARTBEAT_SECONDS:
            self._was_paused = True
        self._heartbeat_at = loop.time()
        self._heartbeat = loop.call_later(_HEARTBEAT_SECONDS, self._keep_heartbeat)

    async def wait(self, seconds: float, step_seconds: float) -> list[tuple[Change, str]]:
        """Return changes as they come, none after `seconds` (at most a heartbeat).

        Raises `NotificationsLost` also when the process was paused, or when the old folders had to
        be given up before the new ones were watched.
        """
        seconds = min(max(seconds, 0.0), _HEARTBEAT_SECONDS)
        if self._was_paused:
            self._was_paused = False
            self._drop()
            raise NotificationsLost
        if self._missed_changes:
            self._missed_changes = False
            raise NotificationsLost
        if self._retiring:
            try:
                return await self._disk(_remaining, tuple(self._retiring))
            finally:  # the thread may never begin once this is cancelled
                self._retire()
        if self._notifier is None:
            await asyncio.sleep(seconds)
            return []
        try:
            return await self._disk(self._notifier.wait, seconds, step_seconds)
        except NotificationsLost:
            self._drop()
            raise

    def _retire(self) -> None:
        while self._retiring:
            self._retiring.pop().stop()

    def _drop(self) -> None:
        self._retire()
        if self._notifier is not None:
            self._notifier.stop()
        self._notifier, self._watched = None, {}

    def forget(self, folder: str) -> bool:
        """Forget a folder that went away, and all below it; False if it was unknown."""
        if folder not in self.folders:
            return False
        below = f"{folder}/" if folder else ""
        self.folders = {
            name for name in self.folders if name != folder and not name.startswith(below)
        }
        self._watched = {
            name: self._watched[name] for name in self._watched if name in self.folders
        }
        return True

    def stop(self) -> None:
        """Stop watching."""
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            self._heartbeat = None
        self._drop()
        self.folders, self.undecodable = set(), set()


def _can_be_watched(path: str) -> bool:
    """Whether the library can watch this name: UTF-8, and short enough for a path (limits.h)."""
    return is_text(path) and len(os.fsencode(path)) < _PATH_MAX


def _remaining(retiring: Sequence[Notifier]) -> list[tuple[Change, str]]:
    """Return the remaining changes of notifiers."""
    return [change for notifier in retiring for change in notifier.wait(0, _DRAIN_STEP_SECONDS)]
