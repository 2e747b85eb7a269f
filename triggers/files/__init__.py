"""The file trigger: `files("inbox/*.csv")` turns each version of a file into one event.

A version is path, inode, size and mtime. A file is emitted when it has been at rest for the settle
time, whatever was missed while the service was down included. A file renamed into place is emitted
at once where it can be proved finished: no process has it open for writing, and it was renamed
after its last write, or a temporary name beside it vanished in the same moment; a file that
somebody else owns, or that was written and renamed within one tick of the kernel's clock from
another folder, waits for the settle time like any other.

What matches: `*`, `?`, `[…]`, and `**` for any number of folders; no leading dots, and no names in
the making such as `x.part` or `x.tmp`, unless the pattern ends so. Symbolic links and everything
else that is no regular file are refused and counted. A file that cannot be read is tried again for
some seconds and then emitted with the extension `fileerror`, which makes its runs dead letters.

A file that disappears and comes back is a new event, the same content or not. What `then=` and
`on_failure=` do happens after the last run of the event; their target folders are not watched.

The folder watcher is imported here and nowhere else. Not here: the watch itself (`watching`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from anyio import to_thread

from turnout.service.domain.errors import InvalidData, SetupError
from turnout.service.domain.event import Event, file_url
from turnout.service.domain.trigger import Emitter
from turnout.service.domain.units import parse_duration

from .after_run_actions import Delete, Ending, Move, Subject, delete_file, move_file
from .ledger import Ledger
from .notifications import HintsLost, Sign
from .pattern import Pattern, find_mistake
from .plan import Plan
from .scan import Version
from .watcher import Watching

if TYPE_CHECKING:
    from watchfiles._rust_notify import RustNotify

MAX_DEPTH = 32
"""Folders below the root that are entered unless `max_depth=` says otherwise."""

_RESCAN = timedelta(minutes=1)
_POLL = timedelta(seconds=2)
_SHORTEST_RESCAN = timedelta(milliseconds=50)
_TAG_CHARACTERS = 8


def files(
    pattern: str,
    *,
    settle: str | timedelta = "1s",
    then: Ending | None = None,
    on_failure: Ending | None = None,
    poll: bool = False,
    rescan: str | timedelta | None = None,
    max_depth: int = MAX_DEPTH,
    name: str | None = None,
) -> FilesTrigger:
    """Start a flow for every file that matches `pattern`, a path with wildcards.

    A relative pattern starts at the working directory. `settle` is how long a file must not change
    before it counts as finished. `poll=True` is for network file systems: no notifications, a look
    every `rescan` (default 2 s, else 1 min), and the server's clock is not trusted. Raises
    `SetupError`.
    """
    every = _POLL if poll else _RESCAN
    return FilesTrigger(
        pattern=Pattern.of(pattern),
        settle=parse_duration(settle),
        then=then,
        on_failure=on_failure,
        poll=poll,
        rescan=every if rescan is None else parse_duration(rescan),
        max_depth=max_depth,
        name=name or f"files:{pattern}",
    )


def move(folder: str) -> Move:
    """Move the file into `folder` (relative to the watched folder), subfolders kept.

    The target is made when it is missing and may be on another file system; nothing in it is ever
    overwritten. Raises `SetupError`.
    """
    mistake = find_mistake(folder)
    if mistake is None and ("\0" in folder or set("*?[") & set(folder)):
        mistake = "a folder is wanted, not a pattern"
    if mistake is not None:
        raise SetupError(f'move("{folder}"): {mistake}')
    return Move(folder)


def delete() -> Delete:
    """Delete the file."""
    return Delete()


@dataclass(frozen=True, kw_only=True)
class FilesTrigger:
    """A read trigger that emits one event for each version of each matching file."""

    pattern: Pattern
    settle: timedelta
    then: Ending | None
    on_failure: Ending | None
    poll: bool
    rescan: timedelta
    max_depth: int
    name: str
    ledger: Ledger = field(default_factory=Ledger, compare=False, repr=False)

    @property
    def kind(self) -> str:
        """The module's word."""
        return "files"

    def check(self) -> None:
        """Raise `SetupError` for endings or intervals that cannot work; looks at no disk."""
        if self.rescan < _SHORTEST_RESCAN:
            raise SetupError(f"{self.name}: rescan= is at least 50ms")
        if self.max_depth < 0:
            raise SetupError(f"{self.name}: max_depth= counts folders, 0 or more")
        for word, ending in (("then", self.then), ("on_failure", self.on_failure)):
            if ending is not None and not isinstance(ending, Move | Delete):
                raise SetupError(
                    f'{self.name}: {word}= takes move("folder/") or delete(), not {ending!r}'
                )
            if isinstance(ending, Move):
                self._check_target(word, self._target(ending))

    def _check_target(self, word: str, target: str) -> None:
        root = self.pattern.root
        if target == root or (
            len(self.pattern.segments) > 1 and f"{root}/".startswith(f"{target.rstrip('/')}/")
        ):
            raise SetupError(
                f"{self.name}: {word}=move(…) would put files back where they are watched; "
                f'choose another folder, such as move("../done/")'
            )

    # ---- reading

    async def run(self, emit: Emitter) -> None:
        """Watch and emit until cancelled."""
        plan = Plan(
            pattern=self.pattern,
            settle_seconds=self.settle.total_seconds(),
            rescan_seconds=self.rescan.total_seconds(),
            poll=self.poll,
            max_depth=self.max_depth,
            avoid=self._targets_inside(),
            private=emit.connection("files").get("data"),
            targets=tuple(self._targets()),
        )
        await Watching(plan, self.ledger, emit, _Notifier).run()

    def _targets_inside(self) -> frozenset[str]:
        prefix = f"{self.pattern.root}/"
        return frozenset(
            target.removeprefix(prefix) for target in self._targets() if target.startswith(prefix)
        )

    def _targets(self) -> list[str]:
        endings = (self.then, self.on_failure)
        return [self._target(ending) for ending in endings if isinstance(ending, Move)]

    def _target(self, ending: Move) -> str:
        return os.path.normpath(os.path.join(self.pattern.root, ending.folder))  # noqa: PTH118  Path keeps ".."

    # ---- ending

    @property
    def acts_after_runs(self) -> bool:
        """Whether a file is moved or deleted when its runs have ended."""
        return self.then is not None or self.on_failure is not None

    async def ended(self, event: Event, failure: str | None, emit: Emitter) -> Event | None:
        """Move or delete the file if it is still the version the event was about.

        Repeatable. Returns the event with the file's new `fileurl`, so that a replay finds it.
        Raises `OSError` and `TriggerError`, having lost nothing.
        """
        ending = self.then if failure is None else self.on_failure
        subject = self._subject(event)
        if ending is None or subject is None:
            return None
        moved: str | None = None
        if isinstance(ending, Delete):
            await to_thread.run_sync(delete_file, subject)
        elif (target := self._target(ending)) != subject.root:
            moved = await to_thread.run_sync(move_file, subject, target, event.id[:_TAG_CHARACTERS])
        await self._close(subject, emit)
        if moved is None:
            return None
        return replace(event, extensions={**event.extensions, "fileurl": file_url(moved)})

    def _subject(self, event: Event) -> Subject | None:
        """Return where the event's file is: still in place, or moved by an earlier run."""
        path = event.path
        try:
            size, mtime_ns, inode = (event.data[key] for key in ("size", "mtime_ns", "inode"))
        except (InvalidData, KeyError, TypeError):
            return None  # an event somebody else made
        # The innermost first: a target may lie below the watched folder, or above it.
        for root in sorted({*self._targets(), self.pattern.root}, key=len, reverse=True):
            if path is not None and path.is_relative_to(root):
                known = inode if root == self.pattern.root else None
                return Subject(root, str(path.relative_to(root)), size, mtime_ns, known)
        return None

    async def _close(self, subject: Subject, emit: Emitter) -> None:
        """Remove the ledger's row, if it is about the same version and the file is gone."""
        await self.ledger.load_once(emit)
        known = subject.inode is not None and self.ledger.knows(
            subject.path, Version(subject.inode, subject.size, subject.mtime_ns, 0)
        )
        if known and not await to_thread.run_sync(
            os.path.lexists, Path(subject.root, subject.path)
        ):
            positions = self.ledger.closing([subject.path])
            await emit([], positions)
            self.ledger.apply(positions)


# ---------------------------------------------------------------- notifications

_DEBOUNCE_MILLISECONDS = 20
_QUEUE_LIMIT = Path("/proc/sys/fs/inotify/max_queued_events")


class _Notifier:
    """Notifications of some folders, not of what is below them, through watchfiles.

    Its ready-made loop gathers changes for 50 to 1600 ms; the notifier behind it is used directly
    (documented by watchfiles as "Rust backend"), for 8 ms while files wait.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        self._stopped = False
        self._in_use = Lock()
        self._watcher = _watcher(folders)
        # The kernel drops what does not fit its queue and watchfiles does not say so. A change is
        # up to four entries there: so many in one burst may be all that was left of more.
        self._suspicious = _queue_limit() // 4
        self._burst = 0

    def wait(self, timeout_seconds: float, step_seconds: float) -> list[tuple[Sign, str]]:
        """Return what changed; a `stop` from another thread is noticed within a step."""
        try:
            with self._in_use:
                return [] if self._stopped else self._changes(timeout_seconds, step_seconds)
        finally:
            self._close_if_stopped()

    def _changes(self, timeout_seconds: float, step_seconds: float) -> list[tuple[Sign, str]]:
        from watchfiles._rust_notify import WatchfilesRustInternalError

        signs = (Sign.GONE, Sign.ADDED, Sign.WRITTEN, Sign.GONE)  # watchfiles counts from 1
        try:
            changes = self._watcher.watch(
                _DEBOUNCE_MILLISECONDS,
                max(1, round(step_seconds * 1000)),
                max(1, round(timeout_seconds * 1000)),
                self,
            )
        except WatchfilesRustInternalError as error:  # a limit, or a name that is no UTF-8
            raise HintsLost from error
        if isinstance(changes, str):  # nothing: a timeout or a stop
            self._burst = 0
            return []
        self._burst += len(changes)
        if self._burst >= self._suspicious:
            raise HintsLost
        return [(signs[change], path) for change, path in changes]

    def is_set(self) -> bool:
        """Whether to stop, asked by watchfiles at each step."""
        return self._stopped

    def stop(self) -> None:
        """Stop watching as soon as no thread waits any more."""
        self._stopped = True
        self._close_if_stopped()

    def _close_if_stopped(self) -> None:
        """Give the kernel's instance back, by whoever comes last: a `wait`, or the `stop`.

        Not left to the garbage: the error a `wait` has raised holds on to this object.
        """
        if self._stopped and self._in_use.acquire(blocking=False):
            try:
                self._watcher.close()
            finally:
                self._in_use.release()


def _watcher(folders: Sequence[str]) -> RustNotify:
    """Start watching these folders; raises `OSError` that names the limit which is reached."""
    from watchfiles._rust_notify import RustNotify, WatchfilesRustInternalError

    try:
        return RustNotify(list(folders), False, False, 300, False, False)
    except WatchfilesRustInternalError as error:
        if f"os error {errno.EMFILE}" not in str(error):
            raise OSError(str(error)) from None
        raise OSError(
            errno.EMFILE,
            "no inotify instance is left: raise fs.inotify.max_user_instances, or the open files "
            "of the process",
        ) from None
    except OSError as error:
        if "limit reached" not in str(error):  # it has no number
            raise
        raise OSError(
            errno.ENOSPC, "too many watched folders: raise fs.inotify.max_user_watches"
        ) from None


def _queue_limit() -> int:
    try:
        return int(_QUEUE_LIMIT.read_text())
    except (OSError, ValueError):
        return 16384
