"""Tells a file that went away and came back from a late notification of an older removal.

A known file whose removal was notified is a new one, even with the same inode, size and mtime. But
a notification may come late, after a walk has found and emitted the present file. The inode's ctime
tells the two cases apart. So the ctime of what was emitted is remembered until every older
notification must have arrived.
"""

from __future__ import annotations

from .scan import Version


class Removals:
    """The files emitted recently, for as long as older notifications may still come."""

    def __init__(self) -> None:
        self._emitted: dict[str, int] = {}
        self._emitted_before: dict[str, int] = {}

    def emitted(self, path: str, version: Version) -> None:
        """Note that this version has become an event."""
        self._emitted[path] = version.changed_ns

    def waited(self) -> None:
        """Note that notifications were waited for; after two waits all older ones have arrived."""
        self._emitted_before, self._emitted = self._emitted, {}

    def is_back(self, path: str, found: Version) -> bool:
        """Whether the notified removal of a known file came after its event."""
        emitted = self._emitted.get(path, self._emitted_before.get(path))
        return emitted != found.changed_ns
