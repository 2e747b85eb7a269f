"""Hears of changes in a set of folders, and says so when it may have missed some.

Only folders a walk has been in are watched, each by itself: a link or a mount that appears among
them is never followed. Where the machine gives no notifications (a limit is reached, a share
knows none) the folders are reported as unwatched and only walks remain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Protocol, TypeVar

from anyio import CapacityLimiter, to_thread

from turnout.service.logs import get_logger
from turnout.service.trigger import Emitter

from .sighting import displayed

UNWATCHED = "unwatched folders"
"""The lag partition that counts folders without notifications."""

_HEARTBEAT_SECONDS = 1.0
_AGAIN_SECONDS = 30.0
_DRAIN_STEP_SECONDS = 0.004

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
    """The notifications of one trigger: `folders` are those it hears of, relative to the root."""

    def __init__(self, root: str, emit: Emitter, disk: Disk, open_notifier: OpenNotifier) -> None:
        self.folders: set[str] = set()
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

    @property
    def works(self) -> bool:
        """Whether there are notifications at all."""
        return self._notifier is not None

    def wants_retry(self, now: float) -> bool:
        """Whether it is time to ask the machine for notifications again."""
        return self._notifier is None and now >= self._again_at

    async def listen(self, folders: set[str], now: float) -> None:
        """Hear of changes in exactly these folders from now on, or not at all (`works`)."""
        self.folders = set(folders)
        if self._beat is None:
            self._beat_at = asyncio.get_running_loop().time()
            self._keep_beat()
        names = (f"{self._root}/{folder}" if folder else self._root for folder in sorted(folders))
        # A name that is no UTF-8 cannot be watched, only walked.
        watchable = [name for name in names if _is_text(name)]
        if self._notifier is not None:
            # What it heard until the next one hears is asked for by the next `wait`: late enough
            # for its own thread to have read what the kernel had for it.
            self._retiring.append(self._notifier)
            self._notifier = None
        try:
            self._notifier = await self._disk(self._open, watchable)
            self._warned = False
        except OSError as error:
            self._give_up(error, now)
        heard = len(watchable) if self.works else 0
        self._emit.lag(UNWATCHED, len(folders) - heard)

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

        Raises `HintsLost` also when the process was paused for a while.
        """
        seconds = min(max(seconds, 0.0), _HEARTBEAT_SECONDS)
        if self._was_paused:
            self._was_paused = False
            self._drop()
            raise HintsLost
        try:
            if self._retiring:
                return await self._disk(self._last_words)
            if self._notifier is not None:
                return await self._disk(self._notifier.wait, seconds, step_seconds)
        except HintsLost:
            self._drop()
            raise
        await asyncio.sleep(seconds)
        return []

    def _last_words(self) -> list[tuple[Sign, str]]:
        signs: list[tuple[Sign, str]] = []
        while self._retiring:
            notifier = self._retiring.pop()
            signs += notifier.wait(0, _DRAIN_STEP_SECONDS)
            notifier.stop()
        return signs

    def _drop(self) -> None:
        for notifier in (*self._retiring, self._notifier):
            if notifier is not None:
                notifier.stop()
        self._retiring, self._notifier = [], None

    def forget(self, folder: str) -> bool:
        """Stop counting on a folder that went away, and all below it; False if it was unknown."""
        if folder not in self.folders:
            return False
        below = f"{folder}/" if folder else ""
        self.folders = {
            name for name in self.folders if name != folder and not name.startswith(below)
        }
        return True

    def stop(self) -> None:
        """Hear nothing any more."""
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None
        self._drop()
        self.folders = set()


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
