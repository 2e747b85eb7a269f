"""One process per data folder: a lock that the kernel releases when its holder dies.

A second process is refused with the pid and address of the first, and a kill leaves nothing to
clean up. The lock file holds JSON for people and for the CLI; what counts are the kernel's locks on
the file and on the journal's folder. A folder on a network file system is not protected.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from turnout.service.domain.errors import SetupError

from .files import journal_folder

NAME = "lock"

_TRIES = 5
_PAUSE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that uses a data folder and, once it listens, its address."""

    pid: int
    url: str | None


class FolderLock:
    """The right to write in a data folder, until `release` or the end of the process."""

    def __init__(self, data: Path, *, url: str | None = None) -> None:
        """Take the lock; raises `SetupError` naming the process that has it."""
        self.data = data
        folder = journal_folder(data)
        folder.mkdir(mode=0o700, exist_ok=True)
        self._descriptor = _open(data / NAME, os.O_RDWR | os.O_CREAT)
        self._folder = -1
        try:
            # Both: the file names the holder, the folder stays locked if the file is removed.
            self._folder = os.open(folder, os.O_RDONLY)
            if not (_lock(self._descriptor) and _lock(self._folder)):
                raise SetupError(_refusal(data, _read(self._descriptor)))
            self.write_url(url)
        except BaseException:
            self._close()
            raise

    def write_url(self, url: str | None) -> None:
        """Write the address of this process, once its socket is bound."""
        content = json.dumps({"pid": os.getpid(), "url": url}).encode()
        os.pwrite(self._descriptor, content, 0)
        os.ftruncate(self._descriptor, len(content))

    def release(self) -> None:
        """Release the lock; the file stays, empty."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            self._close()

    def _close(self) -> None:
        for descriptor in (self._descriptor, self._folder):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._folder = -1


def read_lock(data: Path) -> Holder | None:
    """Return the process that uses a data folder now, or None."""
    for path in (data / NAME, journal_folder(data)):
        try:
            descriptor = _open(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read(descriptor)
        finally:
            os.close(descriptor)
    return None


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise SetupError(f"{path} is a symbolic link; remove it") from None
        raise


def _lock(descriptor: int) -> bool:
    # `read_lock` takes the lock for an instant, so one refusal proves nothing.
    for attempt in range(_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if attempt + 1 < _TRIES:
                time.sleep(_PAUSE_SECONDS)
    return False


def _read(descriptor: int) -> Holder:
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
        return Holder(int(content["pid"]), content["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return Holder(0, None)  # taken but not written yet, or the file was removed


def _refusal(folder: Path, holder: Holder) -> str:
    who = f"process {holder.pid}" if holder.pid else "another process"
    where = f" ({holder.url})" if holder.url else ""
    return (
        f"{folder} is in use by {who}{where}; "
        "stop it first, or point TURNOUT_DATA at another folder"
    )
