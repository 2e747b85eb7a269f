"""Tells a file that went away and is there again from late word of an older removal.

A known file whose removal was notified is a new one, even with the inode, size and mtime it had.
But notifications may come late: after a walk has found and emitted what is there now. Whether the
inode has changed since then tells the two apart, so the ctime of what was emitted is remembered,
until whatever was on its way by then has been told.
"""

from __future__ import annotations

from .scan import Version


class Removals:
    """The files emitted of late, for as long as older notifications may still come."""

    def __init__(self) -> None:
        self._emitted: dict[str, int] = {}
        self._emitted_before: dict[str, int] = {}

    def emitted(self, path: str, version: Version) -> None:
        """Take note that this version has become an event."""
        self._emitted[path] = version.changed_ns

    def are_told(self) -> None:
        """Take note that notifications were waited for: what is older than two waits was told."""
        self._emitted_before, self._emitted = self._emitted, {}

    def is_back(self, path: str, found: Version) -> bool:
        """Whether the removal of a known file, just notified, came after its event."""
        emitted = self._emitted.get(path, self._emitted_before.get(path))
        return emitted != found.changed_ns
