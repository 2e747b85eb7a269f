"""One process per data folder: a lock the kernel drops when its holder dies.

Guarantees that a second process is refused with the first one's pid and address, and that a kill
leaves nothing to clean up. The file holds JSON for people and for the CLI; only the kernel's lock
counts. It does not protect a folder shared over a network file system.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from turnout.service.errors import SetupError

_TRIES = 5
_PAUSE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Holder:
    """Who works on a data folder: a process and, once it listens, the address it answers at."""

    pid: int
    url: str | None


class FolderLock:
    """The right to write in a data folder, held until `release` or the end of the process."""

    def __init__(self, folder: Path, *, url: str | None = None) -> None:
        """Take the lock; raises `SetupError` naming the process that has it."""
        self._descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        # `read_lock` tests by locking for an instant, so one refusal is not yet an answer.
        for attempt in range(_TRIES):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt + 1 < _TRIES:
                    time.sleep(_PAUSE_SECONDS)
        else:
            holder = _read(self._descriptor)
            os.close(self._descriptor)
            raise SetupError(_refusal(folder, holder))
        self.write_url(url)

    def write_url(self, url: str | None) -> None:
        """Tell others where this process answers, as soon as its socket is bound."""
        content = json.dumps({"pid": os.getpid(), "url": url}).encode()
        os.pwrite(self._descriptor, content, 0)
        os.ftruncate(self._descriptor, len(content))

    def release(self) -> None:
        """Give the folder up; the file stays, empty."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1


def read_lock(folder: Path) -> Holder | None:
    """Return who works on `folder` now, or None when nobody does."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(descriptor)
    finally:
        os.close(descriptor)
    return None


def _read(descriptor: int) -> Holder:
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
        return Holder(int(content["pid"]), content["url"])
    except (ValueError, KeyError, TypeError):
        return Holder(0, None)  # caught between being taken and being written


def _refusal(folder: Path, holder: Holder) -> str:
    who = f"process {holder.pid}" if holder.pid else "another process"
    where = f" ({holder.url})" if holder.url else ""
    return (
        f"{folder} is in use by {who}{where}; "
        "stop it first, or point TURNOUT_DATA at another folder"
    )
