"""Content of any size on its way into the blobs: written to a file, named, then kept or discarded.

What a crash leaves has the suffix of unfinished files, which the next start deletes.
"""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from .blobs import BlobStore, name_of, new_digest

_LOOK_BYTES = 16 * 2**20
"""After so many bytes the free space is looked at again."""


class StagedBlob:
    """Implements `StagedFile` of the contract."""

    def __init__(self, blobs: BlobStore, min_free_bytes: int) -> None:
        self._blobs = blobs
        self._min_free = min_free_bytes
        self._digest = new_digest()
        self._unlooked = _LOOK_BYTES  # the first write looks
        self._name = ""
        self.is_kept = False
        self.size = 0
        descriptor, part = tempfile.mkstemp(dir=blobs.folder(), suffix=".part")
        self._part = Path(part)
        self._file = os.fdopen(descriptor, "wb", buffering=0)

    def write(self, data: bytes) -> None:
        """Write more of it; raises `OSError` where the disk has too little space."""
        self._unlooked += len(data)
        if self._unlooked >= _LOOK_BYTES:
            self._refuse_shortage(len(data))
        self._digest.update(data)
        self.size += len(data)
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def _refuse_shortage(self, needed: int) -> None:
        self._unlooked = 0
        disk = os.statvfs(self._part)
        if disk.f_bavail * disk.f_frsize - needed < self._min_free:
            raise OSError(
                errno.ENOSPC,
                f"the disk of {self._part.parent} would have less than min_free_bytes "
                f"({self._min_free}) free",
            )

    def close(self) -> str:
        """End writing; returns the name of the content."""
        self._file.close()
        self._name = self._digest.hexdigest()
        return self._name

    def keep(self) -> None:
        """Make the closed file durable under its name."""
        self._blobs.adopt(self._part, self._name)
        self.is_kept = True

    def discard(self) -> None:
        """Delete it, unless it was kept."""
        self._file.close()
        with suppress(FileNotFoundError):
            self._part.unlink()


class StagedBytes:
    """Implements `StagedFile` for content that is in memory; nothing blocks before `keep`."""

    is_kept = True  # there is nothing to discard

    def __init__(self, blobs: BlobStore, data: bytes) -> None:
        self._blobs = blobs
        self._data = data
        self.size = len(data)

    def write(self, data: bytes) -> None:
        """Hold more of it."""
        self._data += data
        self.size += len(data)

    def close(self) -> str:
        """Return the name of the content."""
        return name_of(self._data)

    def keep(self) -> None:
        """Make the content durable under its name."""
        self._blobs.write(self.close(), self._data)

    def discard(self) -> None:
        """Do nothing."""
