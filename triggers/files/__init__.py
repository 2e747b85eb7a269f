"""The file trigger: `files("inbox/*.csv")` turns each version of a file into one event.

A version is path, inode, size and mtime. A file is emitted once it has been at rest for the settle
time, including files that appeared while the service was down. A file that was renamed into place
is emitted at once if it is provably finished: no process has it open for writing, and either it was
renamed after its last write or a temporary name beside it vanished at the same moment. A file that
somebody else owns waits for the settle time like any other, and so does one that was written and
renamed from another folder within one tick of the kernel's clock.

Patterns: `*`, `?`, `[…]`, and `**` for any number of folders. Names with a leading dot and names of
unfinished files such as `x.part` or `x.tmp` match only a pattern that ends so. Symbolic links and
everything else that is not a regular file are refused and counted. A file that cannot be read is
retried for some seconds and then emitted with the extension `fileerror`, which makes its runs dead
letters.

A file that disappears and comes back is a new event, even with the same content, unless `id=` says
what makes two files the same: then the second one within the window starts nothing, and stays where
it is, since turnout moves and deletes only what a run was given. The actions of
`then=` and `on_failure=` happen after the last run of the event; their target folders are not
watched.

The notification library is imported here and nowhere else. Not here: the watch itself (`watcher`).
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Literal

from anyio import to_thread

from turnout.service.domain.errors import InvalidData, SetupError
from turnout.service.domain.event import Event, file_url, like
from turnout.service.domain.trigger import AfterRun, Emitter
from turnout.service.domain.units import parse_duration
from turnout.triggers.identity import EventId, check_function, check_window, window

from .after_run_actions import AfterRunAction, Delete, Move, Subject, delete_file, move_file
from .file_version import FileVersion, file_event, named
from .notifications import Change, NotificationsLost
from .pattern import Pattern, find_mistake
from .plan import Plan
from .positions import FilePositions
from .scan import Version
from .watcher import Watching

if TYPE_CHECKING:
    from watchfiles._rust_notify import RustNotify

MAX_DEPTH = 32
"""How many levels of folders below the root are entered, unless `max_depth=` says otherwise."""

_RESCAN = timedelta(minutes=1)
_POLL = timedelta(seconds=2)
_SHORTEST_RESCAN = timedelta(milliseconds=50)
_TAG_CHARACTERS = 8


def files(
    pattern: str,
    *,
    settle: str | timedelta = "1s",
    then: AfterRunAction | None = None,
    on_failure: AfterRunAction | None = None,
    poll: bool = False,
    rescan: str | timedelta | None = None,
    max_depth: int = MAX_DEPTH,
    id: Literal["content"] | EventId | None = None,
    dedupe: str | timedelta | None = None,
    name: str | None = None,
) -> FilesTrigger:
    """Start a flow for every file that matches: `files("inbox/**/*.csv", then=move("done/"))`.

    Also for files that appeared while the service was down. Each version of a file (path, inode,
    size, time) is one event, once it has stopped changing. Hidden and unfinished names (`x.part`)
    match only a pattern that spells them out. Links are refused.

    * `pattern`: a path with `*`, `?`, `[…]`, and `**` for any number of folders; a relative one
      starts at the folder the service is started in
    * `settle`: how long a file must not change before it counts as finished; if a writer pauses for
      longer, the flow runs on what is there so far
    * `then`: what to do with the file after the last run of its event: `move("done/")`, relative to
      the watched folder, or `delete()`
    * `on_failure`: the same, when a run has failed for good; without it the file stays
    * `poll`: `True` scans folders instead of waiting for notifications: for network file systems
    * `rescan`: how often all folders are scanned: `"1m"`, with `poll=True` `"2s"`
    * `max_depth`: how many levels of folders are entered
    * `id`: what makes two files one event: `"content"` (equal bytes), or a function of the event;
      the second one starts nothing and stays where it is
    * `dedupe`: for how long an `id` is remembered, at least `"1m"`, or `"forever"`; the setting by
      default
    * `name`: the trigger's name, the key of its position and metrics

    Raises `SetupError` for a pattern that could match nothing.

    ```python
    from pathlib import Path

    from turnout import files, flow, move


    @flow(on=files("inbox/**/*.csv", settle="2s", then=move("done/"), on_failure=move("failed/")))
    def load(path: Path) -> int:
        return len(path.read_text().splitlines())
    ```
    """
    if not isinstance(pattern, str):
        raise SetupError(
            f"files({pattern!r}): a pattern is a text; with a Path in `folder` it is "
            'f"{folder}/*.csv"'
        )
    every = _POLL if poll else _RESCAN
    return FilesTrigger(
        pattern=Pattern.of(pattern),
        settle=parse_duration(settle),
        then=then,
        on_failure=on_failure,
        poll=poll,
        rescan=every if rescan is None else parse_duration(rescan),
        max_depth=max_depth,
        id=id,
        dedupe=window(dedupe),
        name=name or f"files:{pattern}",
    )


def move(folder: str) -> Move:
    """Move the file after the last run of its event: `files("inbox/*.csv", then=move("done/"))`.

    A missing folder is created, on another file system too. Nothing in it is overwritten: the file
    gets another name. Subfolders are kept.

    * `folder`: where to, relative to the watched folder

    Raises `SetupError` for a folder whose files would match the pattern again.

    ```python
    from pathlib import Path

    from turnout import files, flow, move


    @flow(on=files("statements/*.xml", then=move("../done/")))
    def book(path: Path) -> str:
        return path.name
    ```
    """
    if not isinstance(folder, str):
        raise SetupError(f"move({folder!r}): a folder is a text; write str(…) around a Path")
    mistake = find_mistake(folder)
    if mistake is None and ("\0" in folder or set("*?[") & set(folder)):
        mistake = "it must be a folder, not a pattern"
    if mistake is not None:
        raise SetupError(f'move("{folder}"): {mistake}')
    return Move(folder)


def delete() -> Delete:
    """Delete the file after the last run of its event: `files("inbox/*.csv", then=delete())`.

    Only the version a run was given is deleted: one that was changed since is another event. Raises
    nothing; a file that cannot be deleted is logged and tried again.

    ```python
    from pathlib import Path

    from turnout import delete, files, flow


    @flow(on=files("inbox/*.csv", then=delete()))
    def load(path: Path) -> int:
        return len(path.read_text().splitlines())
    ```
    """
    return Delete()


@dataclass(frozen=True, kw_only=True)
class FilesTrigger:
    """A read trigger that emits one event for each version of each matching file."""

    pattern: Pattern
    settle: timedelta
    then: AfterRunAction | None
    on_failure: AfterRunAction | None
    poll: bool
    rescan: timedelta
    max_depth: int
    id: Literal["content"] | EventId | None
    dedupe: timedelta | None
    name: str
    positions: FilePositions = field(default_factory=FilePositions, compare=False, repr=False)

    tells_progress = True

    @property
    def kind(self) -> str:
        """The word for this kind of trigger."""
        return "files"

    def check(self) -> None:
        """Raise `SetupError` for actions or intervals that cannot work; touches no disk."""
        if self.rescan < _SHORTEST_RESCAN:
            raise SetupError(f"{self.name}: rescan= must be at least 50ms")
        if self.max_depth not in range(sys.maxsize):
            raise SetupError(f"{self.name}: max_depth= is a number of folders, 0 or more")
        self._check_id()
        for word, action in (("then", self.then), ("on_failure", self.on_failure)):
            if action is not None and not isinstance(action, Move | Delete):
                raise SetupError(
                    f'{self.name}: {word}= takes move("folder/") or delete(), not {action!r}'
                )
            if isinstance(action, Move):
                self._check_target(word, self._target(action))

    def _check_id(self) -> None:
        if isinstance(self.id, str) and self.id != "content":
            raise SetupError(
                f'{self.name}: id={self.id!r}: write id="content", or id=lambda event: …'
            )
        if self.id is not None and self.id != "content":
            check_function(self.name, self.id)
        if self.dedupe is not None and self.id is None:
            raise SetupError(
                f"{self.name}: dedupe= needs id=; without it each version of a file is an event "
                "once, for as long as it lies there"
            )
        check_window(self.name, self.dedupe)

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
            by_content=self.id == "content",
        )
        await Watching(plan, self.event, self.positions, emit, Notifier).run()

    def event(self, file: FileVersion, time: datetime) -> Event:
        """Return the event of a file version, under the id that `id=` gives it."""
        event = like(file_event(self.pattern.root, file, time=time), trigger=self.name)
        return self.identified(event, file.version)

    def identified(self, event: Event, version: Version) -> Event:
        """Ask `id=` about the event of a file version, if it is a function."""
        if self.id is None or isinstance(self.id, str):
            return event
        return named(event, self.id, version)

    def _targets_inside(self) -> frozenset[str]:
        prefix = f"{self.pattern.root}/"
        return frozenset(
            target.removeprefix(prefix) for target in self._targets() if target.startswith(prefix)
        )

    def _targets(self) -> list[str]:
        actions = (self.then, self.on_failure)
        return [self._target(action) for action in actions if isinstance(action, Move)]

    def _target(self, action: Move) -> str:
        return os.path.normpath(os.path.join(self.pattern.root, action.folder))  # noqa: PTH118  Path keeps ".."

    # ---- action

    @property
    def after_run(self) -> AfterRun | None:
        """Return this trigger if a file is to be moved or deleted when its runs have ended."""
        return None if self.then is None and self.on_failure is None else self

    async def ended(self, event: Event, failure: str | None, emit: Emitter) -> Event | None:
        """Move or delete the file if it is still the version that the event was about.

        Safe to repeat. Returns the event with the file's new `fileurl`, so that a replay finds it.
        Raises `OSError` and `TriggerError`, having lost nothing.
        """
        action = self.then if failure is None else self.on_failure
        subject = self._subject(event)
        if action is None or subject is None:
            return None
        moved: str | None = None
        tag = event.extensions.get("fileversion", event.id)[:_TAG_CHARACTERS]
        if isinstance(action, Delete):
            await to_thread.run_sync(delete_file, subject, tag)
        elif (target := self._target(action)) != subject.root:
            moved = await to_thread.run_sync(move_file, subject, target, tag)
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
            return None  # not an event of this trigger
        # Innermost first: a target may lie below or above the watched folder.
        for root in sorted({*self._targets(), self.pattern.root}, key=len, reverse=True):
            if path is not None and path.is_relative_to(root):
                known = inode if root == self.pattern.root else None
                return Subject(root, str(path.relative_to(root)), size, mtime_ns, known)
        return None

    async def _close(self, subject: Subject, emit: Emitter) -> None:
        """Remove the position of the same version once the file is gone."""
        await self.positions.load_once(emit)
        async with self.positions.changing:
            known = subject.inode is not None and self.positions.knows(
                subject.path, Version(subject.inode, subject.size, subject.mtime_ns, 0)
            )
            if known and not await to_thread.run_sync(
                os.path.lexists, Path(subject.root, subject.path)
            ):
                positions = self.positions.closing([subject.path])
                await emit([], positions)
                self.positions.apply(positions)


# ---------------------------------------------------------------- notifications

_DEBOUNCE_MILLISECONDS = 20
_QUEUE_LIMIT = Path("/proc/sys/fs/inotify/max_queued_events")


class Notifier:
    """Notifications of some folders, not of the folders below, through watchfiles.

    Its own loop gathers changes for 50 to 1600 ms. This uses the notifier behind it directly
    (documented by watchfiles as "Rust backend"), for 8 ms while files wait.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        self._stopped = False
        self._in_use = Lock()
        self._watcher = _watcher(folders)
        # The kernel drops what does not fit its queue, and watchfiles does not report it. A change
        # takes up to four entries: a burst of this size may be what was left of a larger one.
        self._suspicious = _queue_limit() // 4
        self._burst = 0

    def wait(self, timeout_seconds: float, step_seconds: float) -> list[tuple[Change, str]]:
        """Return what changed; a `stop` from another thread takes effect within a step."""
        try:
            with self._in_use:
                return [] if self._stopped else self._changes(timeout_seconds, step_seconds)
        finally:
            self._close_if_stopped()

    def _changes(self, timeout_seconds: float, step_seconds: float) -> list[tuple[Change, str]]:
        from watchfiles._rust_notify import WatchfilesRustInternalError

        kinds = (Change.GONE, Change.ADDED, Change.WRITTEN, Change.GONE)  # watchfiles counts from 1
        try:
            changes = self._watcher.watch(
                _DEBOUNCE_MILLISECONDS,
                max(1, round(step_seconds * 1000)),
                max(1, round(timeout_seconds * 1000)),
                self,
            )
        except WatchfilesRustInternalError as error:  # a limit, or a name that is not UTF-8
            raise NotificationsLost from error
        if isinstance(changes, str):  # nothing: a timeout or a stop
            self._burst = 0
            return []
        self._burst += len(changes)
        if self._burst >= self._suspicious:
            raise NotificationsLost
        return [(kinds[change], path) for change, path in changes]

    def is_set(self) -> bool:
        """Whether to stop, asked by watchfiles at each step."""
        return self._stopped

    def stop(self) -> None:
        """Stop watching as soon as no thread waits."""
        self._stopped = True
        self._close_if_stopped()

    def _close_if_stopped(self) -> None:
        """Close the inotify instance; whoever is last does it, a `wait` or the `stop`.

        Garbage collection would be too late: the error that a `wait` has raised holds this object.
        """
        if self._stopped and self._in_use.acquire(blocking=False):
            try:
                self._watcher.close()
            finally:
                self._in_use.release()


def _watcher(folders: Sequence[str]) -> RustNotify:
    """Start watching these folders; raises `OSError` that names an exhausted limit."""
    from watchfiles._rust_notify import RustNotify, WatchfilesRustInternalError

    try:
        return RustNotify(list(folders), False, False, 300, False, False)
    except WatchfilesRustInternalError as error:
        if f"os error {errno.EMFILE}" not in str(error):
            raise OSError(str(error)) from None
        raise OSError(
            errno.EMFILE,
            "no inotify instance is left: raise fs.inotify.max_user_instances, or the process's "
            "limit on open files",
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
