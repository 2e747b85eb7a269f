"""Hears of changes in a set of folders, and says so when it may have missed some.

Only folders a walk has been in are watched, each by itself: a link or a mount that appears among
them is never followed. Where the machine gives no notifications (a limit is reached, a share
knows none) the folders are reported as unwatched and only walks remain. So it is for a single
folder that holds a name which is no UTF-8: the watcher can report nothing about it, not even that
the walk has looked.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Protocol, TypeVar

from anyio import CapacityLimiter, to_thread

from turnout.service.domain.trigger import Emitter
from turnout.service.telemetry.logs import get_logger

from .file_version import displayed
from .scan import Identity, identity_of, is_text

UNWATCHED = "unwatched folders"
"""The lag partition that counts folders without notifications."""

_HEARTBEAT_SECONDS = 1.0
_AGAIN_SECONDS = 30.0
_DRAIN_STEP_SECONDS = 0.004
_PATH_MAX = 4096
_CLOSING_SECONDS = 0.05  # a closed instance is given back by its own thread

T = TypeVar("T")

log = get_logger("turnout.files")


class Sign(Enum):
    """What a notification says of a name: it appeared, its file was written to, it went away."""

    ADDED = "added"
    WRITTEN = "written"
    GONE = "gone"


class HintsLost(Exception):
    """Raised when notifications may be missing: only a walk tells what is there."""


class Notifier(Protocol):
    """Notifications of a fixed set of folders; they may be missing, late or one too many."""

    def wait(self, timeout_seconds: float, step_seconds: float) -> list[tuple[Sign, str]]:
        """Block until something changes; returns signs with absolute paths. Raises `HintsLost`."""

    def stop(self) -> None:
        """Make a `wait` in another thread return at once, and watch no more."""


OpenNotifier = Callable[[Sequence[str]], Notifier]
"""Starts watching folders, given by absolute path; raises `OSError`."""


class Disk:
    """The one thread a trigger uses for everything that touches the disk."""

    def __init__(self) -> None:
        self._thread = CapacityLimiter(1)

    async def __call__(self, call: Callable[..., T], *arguments: object, **named: object) -> T:
        """Call in the thread; a cancel does not wait for it: a share that hangs stops nothing."""
        return await to_thread.run_sync(
            lambda: call(*arguments, **named), abandon_on_cancel=True, limiter=self._thread
        )


class Hearing:
    """The notifications of one trigger: `folders` are those it hears of, relative to the root.

    `undecodable` are those among them that are left to walks (`Tour.undecodable`).
    """

    def __init__(self, root: str, emit: Emitter, disk: Disk, open_notifier: OpenNotifier) -> None:
        self.folders: set[str] = set()
        self.undecodable: set[str] = set()
        self._heard: dict[str, Identity | None] = {}
        self._root = root
        self._emit = emit
        self._disk = disk
        self._open = open_notifier
        self._notifier: Notifier | None = None
        self._retiring: list[Notifier] = []
        self._again_at = 0.0
        self._warned = False
        self._beat: asyncio.TimerHandle | None = None
        self._beat_at = 0.0
        self._was_paused = False
        self._was_deaf = False

    @property
    def works(self) -> bool:
        """Whether there are notifications at all."""
        return self._notifier is not None

    @property
    def is_whole(self) -> bool:
        """Whether every folder is heard of; what is not must be walked often."""
        return len(self._heard) == len(self.folders)

    def wants_retry(self, now: float) -> bool:
        """Whether it is time to ask the machine for notifications again."""
        return self._notifier is None and now >= self._again_at

    def is_about(self, folders: Mapping[str, Identity], undecodable: set[str]) -> bool:
        """Whether it hears of exactly these folders, and not of others that had their names."""
        return (
            self.folders == folders.keys()
            and self.undecodable == undecodable
            and all(folders[name] == identity for name, identity in self._heard.items())
        )

    async def listen(self, folders: set[str], now: float) -> None:
        """Hear of changes in exactly these folders from now on, or not at all (`works`)."""
        self.folders = set(folders)
        self._heard = {}
        if self._beat is None:
            self._beat_at = asyncio.get_running_loop().time()
            self._keep_beat()
        paths = {
            folder: f"{self._root}/{folder}" if folder else self._root
            for folder in sorted(folders.difference(self.undecodable))
        }
        watchable = {folder: path for folder, path in paths.items() if _can_be_watched(path)}
        if self._notifier is not None:
            # What it heard until the next one hears is asked for by the next `wait`: late enough
            # for its own thread to have read what the kernel had for it.
            self._retiring.append(self._notifier)
            self._notifier = None
        try:
            if watchable:
                await self._start(watchable)
                # Gone meanwhile, or closed to us: a walk, or word from its parent, brings it back.
                self.folders -= watchable.keys() - self._heard.keys()
            self._warned = False
        except OSError as error:
            self._give_up(error, now)
        self._emit.lag(UNWATCHED, len(self.folders) - len(self._heard))

    async def _start(self, paths: Mapping[str, str]) -> None:
        try:
            self._notifier, self._heard = await self._disk(self._watch, paths)
        except OSError as error:
            if error.errno != errno.EMFILE or not self._retiring:
                raise
            # The last instance there was may be our own old one.
            self._retire()
            self._was_deaf = True
            await asyncio.sleep(_CLOSING_SECONDS)
            self._notifier, self._heard = await self._disk(self._watch, paths)

    def _watch(self, paths: Mapping[str, str]) -> tuple[Notifier, dict[str, Identity | None]]:
        # Asked before they are watched: one that is replaced meanwhile counts as not heard of.
        heard = {
            folder: identity_of(path) for folder, path in paths.items() if os.access(path, os.R_OK)
        }
        return self._open([paths[folder] for folder in heard]), heard

    def _give_up(self, error: OSError, now: float) -> None:
        if isinstance(error, FileNotFoundError):  # a folder vanished meanwhile: the walk will tell
            self._again_at = now
            return
        self._again_at = now + _AGAIN_SECONDS
        if not self._warned:
            self._warned = True
            log.warning("folder.polled", folder=displayed(self._root), reason=str(error))

    def _keep_beat(self) -> None:
        """Notice a process that stood still, when the kernel's queue may have run over."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._beat_at > 2 * _HEARTBEAT_SECONDS:
            self._was_paused = True
        self._beat_at = loop.time()
        self._beat = loop.call_later(_HEARTBEAT_SECONDS, self._keep_beat)

    async def wait(self, seconds: float, step_seconds: float) -> list[tuple[Sign, str]]:
        """Return signs as they come, none when `seconds` (at most a heartbeat) are over.

        Raises `HintsLost` also when the process was paused for a while, or an old set of folders
        had to be given up before the new one was watched.
        """
        seconds = min(max(seconds, 0.0), _HEARTBEAT_SECONDS)
        if self._was_paused:
            self._was_paused = False
            self._drop()
            raise HintsLost
        if self._was_deaf:
            self._was_deaf = False
            raise HintsLost
        if self._retiring:
            return await self._disk(_last_words, self._take_retiring())
        if self._notifier is None:
            await asyncio.sleep(seconds)
            return []
        try:
            return await self._disk(self._notifier.wait, seconds, step_seconds)
        except HintsLost:
            self._drop()
            raise

    def _take_retiring(self) -> list[Notifier]:
        retiring, self._retiring = self._retiring, []
        return retiring

    def _retire(self) -> None:
        for notifier in self._take_retiring():
            notifier.stop()

    def _drop(self) -> None:
        self._retire()
        if self._notifier is not None:
            self._notifier.stop()
        self._notifier, self._heard = None, {}

    def forget(self, folder: str) -> bool:
        """Stop counting on a folder that went away, and all below it; False if it was unknown."""
        if folder not in self.folders:
            return False
        below = f"{folder}/" if folder else ""
        self.folders = {
            name for name in self.folders if name != folder and not name.startswith(below)
        }
        self._heard = {name: self._heard[name] for name in self._heard if name in self.folders}
        return True

    def stop(self) -> None:
        """Hear nothing any more."""
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None
        self._drop()
        self.folders, self.undecodable = set(), set()


def _can_be_watched(path: str) -> bool:
    """Whether the watcher takes this name: UTF-8, and no longer than a path may be (limits.h)."""
    return is_text(path) and len(os.fsencode(path)) < _PATH_MAX


def _last_words(retiring: Sequence[Notifier]) -> list[tuple[Sign, str]]:
    """Return what notifiers have heard until now, and stop them."""
    try:
        return [sign for notifier in retiring for sign in notifier.wait(0, _DRAIN_STEP_SECONDS)]
    finally:
        for notifier in retiring:
            notifier.stop()
