"""Moves or deletes a file after the last run of its event.

Safe to repeat after a crash at any point: a file that has arrived is recognised by its inode or, on
another file system, by size, mtime and content. Nothing is ever overwritten: if the name is taken,
part of the event's id goes in front of the suffix. Only the version that the event was about is
touched. A newer one stays and has its own event, also one that is renamed into place while this
works: a file is taken away under a hidden name, looked at once more, and put back if it is another.
A file that is open for writing waits (`TooEarly`), where the kernel can tell: local files of the
service's own user. Folders below the watched root and below the target are entered through no
symbolic link. On return the change is on disk, folders included.

Everything here blocks and must run in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from turnout.service.domain.errors import TooEarly, TriggerError

from .scan import is_written, opened

_IS_WRITTEN = "{!r} is open for writing"
NAME_BYTES = 255
_COPY_BYTES = 2**20
# The errors of a file system without hard links, or one that allows none to this file.
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}


@dataclass(frozen=True, slots=True)
class Move:
    """Move the file below `folder`, under its path relative to the watched folder."""

    folder: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete the file."""


AfterRunAction = Move | Delete


class Subject(NamedTuple):
    """The file of an action: `path` below `root`, in the version its event described.

    `inode` is None where it is unknown: the file has been on another file system.
    """

    root: str
    path: str
    size: int
    mtime_ns: int
    inode: int | None

    def is_same(self, status: os.stat_result) -> bool:
        """Whether this is still the version that the event was about."""
        return (
            stat.S_ISREG(status.st_mode)
            and (status.st_size, status.st_mtime_ns) == (self.size, self.mtime_ns)
            and self.inode in (None, status.st_ino)
        )


def delete_file(subject: Subject, tag: str) -> None:
    """Delete the file if it is unchanged; a missing file is fine. Raises `TooEarly`.

    `tag` makes its hidden name while it is taken away.
    """
    folder, _, name = subject.path.rpartition("/")
    with contextlib.suppress(FileNotFoundError), opened(subject.root, folder) as source:
        _put_back(source, name, tag)
        if subject.is_same(_status(source, name)):
            _refuse_written(source, name)
            _take_away(subject, source, name, tag)
            os.fsync(source)


def move_file(subject: Subject, target: str, tag: str) -> str | None:
    """Move the file below `target` and return its new path; None if the version is gone.

    `tag` tells files of one name apart. Raises `TooEarly`, `OSError`, and `TriggerError` when the
    target is the folder that the file is in.
    """
    folder, _, name = subject.path.rpartition("/")
    with contextlib.ExitStack() as stack:
        goal = stack.enter_context(_made(target, folder))
        try:
            source = stack.enter_context(opened(subject.root, folder))
            _put_back(source, name, tag)
            status = _status(source, name)
        except FileNotFoundError:
            source, status = -1, None
        if status is None or not subject.is_same(status):
            _remove(goal, _part(tag))  # left by a crash
        if status is not None and not subject.is_same(status):
            return None
        if status is None:
            chosen = _arrived(subject, goal, (_tagged(name, tag), name))
        elif os.path.samestat(os.fstat(source), os.fstat(goal)):
            raise TriggerError(f"the target {target!r} is the folder the file is in")
        else:
            _refuse_written(source, name)
            chosen = _move(subject, source, goal, name, tag)
        return None if chosen is None else os.path.join(target, folder, chosen)  # noqa: PTH118  odd names stay


def _move(subject: Subject, source: int, goal: int, name: str, tag: str) -> str | None:
    """Give the file its new name, then remove the old one."""
    for chosen in (name, _tagged(name, tag)):
        with contextlib.suppress(FileExistsError):
            _link(subject, source, goal, name, chosen, tag)
            break
        if _is_arrived(source, goal, name, chosen, tag):  # a crash came between link and unlink
            break
    else:
        raise FileExistsError(errno.EEXIST, "both names are taken in the target folder", name)
    os.fsync(goal)
    with contextlib.suppress(FileNotFoundError):
        there = _take_away(subject, source, name, tag)
        if there is not None and os.path.samestat(there, _status(goal, chosen)):
            os.unlink(chosen, dir_fd=goal)  # it has just been written to, or was never ours
            return None
    os.fsync(source)
    return chosen


def _take_away(subject: Subject, folder: int, name: str, tag: str) -> os.stat_result | None:
    """Remove the file from its folder; returns the status of another one that has its name by now.

    Between a look and a removal another program may rename a file into place, and that one would be
    removed unseen. Under its hidden name nobody replaces or opens it. Raises `TooEarly` when it was
    opened for writing just before.
    """
    os.rename(name, _part(tag), src_dir_fd=folder, dst_dir_fd=folder)
    status = _status(folder, _part(tag))
    if not subject.is_same(status):
        _put_back(folder, name, tag)
        return status
    if is_written(folder, _part(tag)):
        _put_back(folder, name, tag)
        raise TooEarly(_IS_WRITTEN.format(name))
    _remove(folder, _part(tag))
    return None


def _put_back(folder: int, name: str, tag: str) -> None:
    """Give a file under its hidden name its own name again, also one that a crash has left.

    If the name is taken it goes: that newer file would have replaced it there.
    """
    with contextlib.suppress(FileNotFoundError, FileExistsError):
        try:
            os.link(_part(tag), name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _rename(folder, folder, _part(tag), name)
    _remove(folder, _part(tag))


def _refuse_written(folder: int, name: str) -> None:
    """Refuse a file that is open for writing: what is written becomes another version and event."""
    if is_written(folder, name):
        raise TooEarly(_IS_WRITTEN.format(name))


def _link(subject: Subject, source: int, goal: int, name: str, chosen: str, tag: str) -> None:
    """Link the file as `chosen` in `goal`; raises `FileExistsError` if the name is taken."""
    try:
        os.link(name, chosen, src_dir_fd=source, dst_dir_fd=goal, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno == errno.EXDEV:
            _copy(subject, source, goal, name, chosen, tag)
        elif error.errno in _NO_LINKS:
            _rename(source, goal, name, chosen)
            if not subject.is_same(_status(goal, chosen)):
                _rename(goal, source, chosen, name)
                raise TriggerError(f"{name!r} changed while it was moved") from None
        else:
            raise


def _rename(source: int, goal: int, name: str, chosen: str) -> None:
    """Rename without overwriting where links are unsupported: an empty file reserves the name.

    A crash in between leaves that empty file, never less.
    """
    os.close(os.open(chosen, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, dir_fd=goal))
    try:
        os.rename(name, chosen, src_dir_fd=source, dst_dir_fd=goal)
    except OSError:
        os.unlink(chosen, dir_fd=goal)
        raise


def _copy(subject: Subject, source: int, goal: int, name: str, chosen: str, tag: str) -> None:
    """Copy to another file system; the real name appears when everything is on disk.

    A failed copy leaves nothing: a part of a file that did not fit would keep the disk full.
    """
    part = _part(tag)
    _remove(goal, part)
    try:
        if not subject.is_same(_write_copy(source, goal, name, part)):
            raise TriggerError(f"{name!r} changed while it was copied")
        try:
            os.link(part, chosen, src_dir_fd=goal, dst_dir_fd=goal)
        except FileExistsError:
            raise
        except OSError:
            _rename(goal, goal, part, chosen)
    finally:
        _remove(goal, part)


def _write_copy(source: int, goal: int, name: str, part: str) -> os.stat_result:
    """Copy content, mode and times of a file to `part`; returns the status of what was copied."""
    reading = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=source)
    with open(reading, "rb") as old:  # noqa: PTH123  by descriptor
        writing = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=goal)
        with open(writing, "wb") as new:  # noqa: PTH123
            while piece := old.read(_COPY_BYTES):
                new.write(piece)
            new.flush()
            status = os.fstat(reading)
            os.fchmod(writing, stat.S_IMODE(status.st_mode) & 0o777)
            os.utime(writing, ns=(status.st_atime_ns, status.st_mtime_ns))
            os.fsync(writing)
    return status


def _part(tag: str) -> str:
    return f".{tag}.part"


def _remove(folder: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _is_arrived(source: int, goal: int, name: str, chosen: str, tag: str) -> bool:
    """Whether `chosen` in `goal` already is the file: the same inode, or a complete copy."""
    here, there = _status(source, name), _status(goal, chosen)
    if os.path.samestat(here, there):
        return here.st_nlink > 1
    if (here.st_size, here.st_mtime_ns) != (there.st_size, there.st_mtime_ns):
        return False
    return _is_copied(source, goal, name, tag) and _is_equal(source, goal, name, chosen)


def _is_copied(source: int, goal: int, name: str, tag: str) -> bool:
    """Whether files reach the target as copies: it is another file system or another mount.

    Two mounts of one file system (container volumes) share a device number but allow no links.
    """
    part = _part(tag)
    _remove(goal, part)
    try:
        os.link(name, part, src_dir_fd=source, dst_dir_fd=goal, follow_symlinks=False)
    except OSError as error:
        return error.errno == errno.EXDEV
    _remove(goal, part)
    return False


def _is_equal(source: int, goal: int, name: str, chosen: str) -> bool:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    with (
        open(os.open(name, flags, dir_fd=source), "rb") as old,  # noqa: PTH123
        open(os.open(chosen, flags, dir_fd=goal), "rb") as new,  # noqa: PTH123
    ):
        while (piece := old.read(_COPY_BYTES)) == new.read(_COPY_BYTES):
            if not piece:
                return True
    return False


def _arrived(subject: Subject, goal: int, names: tuple[str, ...]) -> str | None:
    """Return the name under which a file that has left its old place is in the target.

    Recognised by its inode or, as it may have been copied, by size and mtime.
    """
    for expected in (subject, subject._replace(inode=None)):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                if expected.is_same(_status(goal, name)):
                    return name
    return None


def _tagged(name: str, tag: str) -> str:
    """Put the tag in front of the suffix, and shorten the stem to the longest possible name."""
    stem, dot, suffix = name.rpartition(".")
    if not stem:
        stem, dot, suffix = name, "", ""
    tail = os.fsencode(f"-{tag}{dot}{suffix}")
    if len(tail) >= NAME_BYTES:
        stem, tail = name, os.fsencode(f"-{tag}")
    return os.fsdecode(os.fsencode(stem)[: NAME_BYTES - len(tail)] + tail)


def _status(folder: int, name: str) -> os.stat_result:
    return os.stat(name, dir_fd=folder, follow_symlinks=False)


@contextlib.contextmanager
def _made(target: str, folder: str) -> Iterator[int]:
    """Open `folder` below `target`, creating what is missing."""
    os.makedirs(target, exist_ok=True)  # noqa: PTH103  odd names stay
    descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in folder.split("/") if folder else ():
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=descriptor)
                os.fsync(descriptor)
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)
