"""Reads a file to its end for `id="content"`: the SHA-256 of its bytes is the event's id.

A file is read in slices, so that other work of the trigger has its turn and a stop is not kept
waiting. One that changes meanwhile is another version: it waits for its rest again. Everything here
blocks and must run in a thread. Not here: when a file is read (`file_emitter`).
"""

from __future__ import annotations

import hashlib
import os
import time
from typing import NamedTuple

from .scan import FILE_FLAGS, Version, opened

_SLICE_SECONDS = 0.1
_PIECE_BYTES = 1 << 20


class Content(NamedTuple):
    """What was read of a file: the digest in hexadecimal, or why it could not be read.

    Neither is there when the file has changed or is gone.
    """

    digest: str | None = None
    error: str | None = None


class ContentReader:
    """Reads one version of a file, slice by slice."""

    def __init__(self, root: str, path: str, version: Version) -> None:
        self._root = root
        self._path = path
        self._version = version
        self._hash = hashlib.sha256()
        self._at = 0

    def step(self) -> Content | None:
        """Read on for a moment; returns what was read at the end, None before it."""
        folder, _, name = self._path.rpartition("/")
        try:
            with opened(self._root, folder) as parent:
                descriptor = os.open(name, FILE_FLAGS, dir_fd=parent)
            with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123  by descriptor
                return self._read(file.fileno())
        except FileNotFoundError:
            return Content()
        except OSError as error:
            return Content(error=error.strerror or str(error))

    def _read(self, descriptor: int) -> Content | None:
        if Version.of(os.fstat(descriptor)) != self._version:
            return Content()
        until = time.monotonic() + _SLICE_SECONDS
        while piece := os.pread(descriptor, _PIECE_BYTES, self._at):
            self._hash.update(piece)
            self._at += len(piece)
            if time.monotonic() > until:
                return None
        if Version.of(os.fstat(descriptor)) != self._version:
            return Content()
        return Content(self._hash.hexdigest())
