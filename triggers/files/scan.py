"""Looks at the files below a folder safely: whatever is there, it neither hangs nor leaves it.

Folders are opened one inside the other, relative to their parent and never through a symbolic
link. Only regular files are found. Symbolic links, FIFOs, sockets and devices are refused without
being opened, also when a name becomes one between two looks. The root itself belongs to the
operator and may be a symbolic link.

Everything here blocks and must run in a thread. Not here: what a file's version means.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from .pattern import Pattern, PatternState

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: should the name be a FIFO by now, opening it must not wait for a writer.
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

_SHARES = ("nfs", "cifs", "smb", "9p", "afs", "ceph", "fuse")


class Version(NamedTuple):
    """What distinguishes one content of a file from the next.

    `changed_ns` (the inode's ctime) also changes when a file is renamed; it helps to see whether a
    file is at rest but is not part of its identity.
    """

    inode: int
    size: int
    mtime_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Version:
        """Take the version out of a stat result."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


Walk = Generator[tuple[str, Version], None, None]
"""Files with their versions, in the order they are found."""


class Other(Enum):
    """What a name can be if it is not a file."""

    GONE = "gone"
    FOLDER = "folder"
    REFUSED = "refused"
    UNKNOWN = "unknown"


Identity = tuple[int, int]
"""Device and inode of a folder: distinguish it from another one that has its name now."""


@dataclass(slots=True)
class WalkReport:
    """What a walk met besides files: folders it read, folders it could not, names it refused.

    `undecodable` holds the folders that contain a name which is not UTF-8.
    """

    folders: dict[str, Identity] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    undecodable: set[str] = field(default_factory=set)


@contextlib.contextmanager
def opened(root: str, folder: str = "") -> Iterator[int]:
    """Open `folder` below `root`, one part at a time, through no link; yields its descriptor."""
    descriptor = os.open(root, _FOLDER)
    try:
        for part in folder.split("/") if folder else ():
            inner = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def check_root(root: str) -> None:
    """Raise `OSError` unless the root is there, a folder, and readable."""
    with opened(root):
        pass


def identity_of(folder: str) -> Identity | None:
    """Return which folder this name stands for now, or None."""
    try:
        return _identity(os.stat(folder))  # noqa: PTH116  names stay text with surrogate escapes
    except OSError:
        return None


def is_inside(folder: str, outer: str) -> bool:
    """Whether `folder` is `outer` or lies below it, whatever links lead there."""
    return Path(folder).resolve().is_relative_to(Path(outer).resolve())


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def is_text(name: str) -> bool:
    """Whether a name is UTF-8: otherwise it has surrogate escapes."""
    if name.isascii():
        return True
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def device_of(root: str) -> str:
    """Return which file system the root is on."""
    return str(os.stat(root).st_dev)  # noqa: PTH116  names stay text with surrogate escapes


def walk(
    root: str,
    pattern: Pattern,
    report: WalkReport,
    *,
    below: str = "",
    avoid: frozenset[str] = frozenset(),
    private: Identity | None = None,
    max_depth: int,
) -> Walk:
    """Yield every matching file at or below the folder `below`, with its version.

    Raises `OSError` when the root cannot be opened; any other unreadable folder is noted in
    `report.unread`. Folders in `avoid`, those deeper than `max_depth`, and the folder `private`
    under any name are left out.
    """
    state = pattern.state_of(below)
    if not state:
        return
    with contextlib.ExitStack() as stack:
        try:
            descriptor = stack.enter_context(opened(root, below))
        except OSError as error:
            if not below:
                raise
            if _absence(error) is Other.GONE:
                return
            report.unread.add(below)
            return
        rules = _Rules(pattern, avoid, private, max_depth)
        yield from _walk(descriptor, below, state, rules, report)


def topmost(folders: set[str]) -> list[str]:
    """Leave out folders that lie below another one of the set."""
    chosen: list[str] = []
    for folder in sorted(folders, key=lambda name: f"{name}/"):
        if "" in chosen or (chosen and folder.startswith(f"{chosen[-1]}/")):
            continue
        chosen.append(folder)
    return chosen


class _Rules(NamedTuple):
    pattern: Pattern
    avoid: frozenset[str]
    private: Identity | None
    max_depth: int


def _walk(
    descriptor: int, folder: str, state: PatternState, rules: _Rules, report: WalkReport
) -> Walk:
    inner: list[tuple[str, PatternState]] = []
    identity = _identity(os.fstat(descriptor))
    if identity == rules.private:
        return
    report.folders[folder] = identity
    try:
        yield from _files(descriptor, folder, state, rules, report, inner)
    except OSError:
        report.unread.add(folder)
    for path, deeper in inner:
        name = path.rpartition("/")[2]
        try:
            child = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
        except FileNotFoundError:
            continue
        except OSError:
            report.unread.add(path)
            continue
        try:
            yield from _walk(child, path, deeper, rules, report)
        finally:
            os.close(child)


def _files(
    descriptor: int,
    folder: str,
    state: PatternState,
    rules: _Rules,
    report: WalkReport,
    inner: list[tuple[str, PatternState]],
) -> Iterator[tuple[str, Version]]:
    """Yield the matching files of an open folder; adds the folders to enter next to `inner`."""
    prefix = f"{folder}/" if folder else ""
    with os.scandir(descriptor) as entries:
        for entry in entries:
            if not is_text(entry.name):
                report.undecodable.add(folder)
            path = prefix + entry.name
            deeper = rules.pattern.enter(state, entry.name)
            wanted = rules.pattern.accepts(state, entry.name)
            if entry.is_dir(follow_symlinks=False):
                if not deeper or path in rules.avoid:
                    continue
                if path.count("/") < rules.max_depth:
                    inner.append((path, deeper))
                else:
                    report.refused.add(path)
            elif not entry.is_file(follow_symlinks=False):
                if wanted or deeper:
                    report.refused.add(path)
            elif wanted:
                with contextlib.suppress(FileNotFoundError):
                    yield path, Version.of(entry.stat(follow_symlinks=False))


def look(root: str, paths: Sequence[str]) -> list[Version | Other]:
    """Return what each path, relative to the root, is right now; opens no file."""
    found: list[Version | Other] = []
    with _Folders(root) as folders:
        for path in paths:
            folder, _, name = path.rpartition("/")
            try:
                status = os.stat(name, dir_fd=folders.open(folder), follow_symlinks=False)
            except OSError as error:
                found.append(_absence(error))
                continue
            found.append(_kind(status))
    return found


class Inspection(NamedTuple):
    """The result of opening a file: its version, why it cannot be read, or what it is instead.

    `closed` is true if certainly no process has it open for writing.
    """

    found: Version | Other
    error: str | None = None
    closed: bool = False


def inspect(root: str, paths: Sequence[str], *, ask_closed: bool = False) -> list[Inspection]:
    """Open each path, relative to the root, to learn whether it can be read; reads nothing."""
    with _Folders(root) as folders:
        return [_inspect(folders, path, ask_closed) for path in paths]


def _inspect(folders: _Folders, path: str, ask_closed: bool) -> Inspection:
    folder, _, name = path.rpartition("/")
    try:
        parent = folders.open(folder)
        found = _kind(os.stat(name, dir_fd=parent, follow_symlinks=False))
    except OSError as error:
        return Inspection(_absence(error), error.strerror)
    if isinstance(found, Other):
        return Inspection(found)
    try:
        descriptor = os.open(name, FILE_FLAGS, dir_fd=parent)
    except FileNotFoundError:
        return Inspection(Other.GONE)
    except OSError as error:
        return Inspection(found, error.strerror)
    try:
        opened_as = _kind(os.fstat(descriptor))
        return Inspection(opened_as, closed=ask_closed and _nobody_writes(descriptor))
    finally:
        os.close(descriptor)


def _absence(error: OSError) -> Other:
    """Distinguish a missing name from one that an unreadable folder does not show."""
    missing = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
    return Other.GONE if missing else Other.UNKNOWN


def _kind(status: os.stat_result) -> Version | Other:
    if stat.S_ISREG(status.st_mode):
        return Version.of(status)
    return Other.FOLDER if stat.S_ISDIR(status.st_mode) else Other.REFUSED


def _nobody_writes(descriptor: int) -> bool:
    """Whether certainly no process has the file open for writing; see `_lease`."""
    return _lease(descriptor) == 0


def is_written(folder: int, name: str) -> bool:
    """Whether certainly some process has the file `name` in an open folder open for writing.

    On a network share the kernel refuses the lease for other reasons too: unknown counts as no.
    """
    try:
        descriptor = os.open(name, FILE_FLAGS, dir_fd=folder)
    except OSError:
        return False
    try:
        return _lease(descriptor) == errno.EAGAIN and not _is_on_share(os.fstat(descriptor).st_dev)
    finally:
        os.close(descriptor)


def _lease(descriptor: int) -> int:
    """Ask for a read lease, which is granted while nobody writes (fcntl(2)); 0 or the error number.

    EAGAIN means a writer. The lease is given back at once. If a writer comes in between, the kernel
    sends SIGURG, which is ignored, not SIGIO, which kills. Leases do not work everywhere, nor on
    other users' files.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return errno.ENOSYS
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _is_on_share(device: int) -> bool:
    """Whether a device is a network file system, by proc(5) `mountinfo`."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().decode("utf-8", "replace").splitlines()
    except OSError:
        return False
    mounts = (line.split(" ") for line in lines)
    kinds = (fields[fields.index("-") + 1] for fields in mounts if fields[2] == wanted)
    return any(kind.startswith(_SHARES) for kind in kinds)


class _Folders:
    """Opens folders below a root and keeps the last one open: paths come folder by folder."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._folder: str | None = None
        self._stack = contextlib.ExitStack()
        self._descriptor = -1

    def __enter__(self) -> _Folders:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def open(self, folder: str) -> int:
        if folder != self._folder:
            self._stack.close()
            self._folder = None
            self._descriptor = self._stack.enter_context(opened(self._root, folder))
            self._folder = folder
        return self._descriptor
