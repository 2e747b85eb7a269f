"""Which files are on their way to an event, and when each is at rest for long enough.

A file is at rest when inode, size, mtime and ctime have been the same for the settle time. What a
file's own stamps say counts: one last changed long ago is at rest at first sight, so a full folder
is not waited for at start. On network file systems the server's clock writes those stamps; there
only watching counts.

Pure decisions over the loop clock (`now`, seconds); nothing here looks at a disk.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from .scan import Version

CONFIRM_SECONDS = 0.04
"""How long a file that was renamed into place is watched for a second notification.

Longer than a notification takes to arrive, so that a write which came before the first look shows.
"""

READ_RETRY_SECONDS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""When a file that cannot be read is tried again; after the last one it is emitted as it is."""


@dataclass(slots=True)
class Candidate:
    """A file seen in a version that was not emitted yet; looked at again when `due`.

    `placed` is true while everything speaks for a finished file that was renamed into place.
    `failures` counts the times it could not be read.
    """

    version: Version
    due: float
    placed: bool = False
    failures: int = 0


class Settling:
    """The files that are not emitted yet, the first due first."""

    def __init__(self, settle_seconds: float, *, trust_stamps: bool) -> None:
        self._settle = settle_seconds
        self._trust_stamps = trust_stamps
        self._candidates: dict[str, Candidate] = {}
        self._queue: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._candidates)

    def get(self, path: str) -> Candidate | None:
        """Return the candidate at `path`."""
        return self._candidates.get(path)

    def see(
        self, path: str, version: Version, *, now: float, wall_ns: int, placed: bool = False
    ) -> None:
        """Take note of a file's version; the same as before changes nothing."""
        known = self._candidates.get(path)
        if known is not None and known.version == version:
            return
        wait = self._remaining(version, wall_ns)
        if placed and wait > CONFIRM_SECONDS:
            wait = CONFIRM_SECONDS
        else:
            placed = False
        self._candidates[path] = candidate = Candidate(version, now + wait, placed)
        heapq.heappush(self._queue, (candidate.due, path))

    def touched(self, path: str, *, now: float, wall_ns: int) -> None:
        """Take note of a change: it was not simply renamed into place."""
        candidate = self._candidates.get(path)
        if candidate is not None and candidate.placed:
            candidate.placed = False
            self._put_off(path, candidate, now + self._remaining(candidate.version, wall_ns))

    def unreadable(self, path: str, *, now: float) -> bool:
        """Count a failed look and put the file off; False when it has been put off often enough."""
        candidate = self._candidates[path]
        if candidate.failures >= len(READ_RETRY_SECONDS):
            return False
        wait = READ_RETRY_SECONDS[candidate.failures]
        candidate.failures += 1
        self._put_off(path, candidate, now + wait)
        return True

    def drop(self, path: str) -> None:
        """Forget a file: it was emitted, or it is gone."""
        self._candidates.pop(path, None)

    def next_due(self) -> float | None:
        """Return when the next file is to be looked at again."""
        while self._queue:
            due, path = self._queue[0]
            candidate = self._candidates.get(path)
            if candidate is not None and candidate.due == due:
                return due
            heapq.heappop(self._queue)
        return None

    def due(self, now: float, limit: int) -> list[str]:
        """Return up to `limit` files due by now; each stays due until it is dropped or put off."""
        chosen: dict[str, float] = {}
        while len(chosen) < limit and (due := self.next_due()) is not None and due <= now:
            _, path = heapq.heappop(self._queue)
            chosen[path] = due
        for path, due in chosen.items():
            heapq.heappush(self._queue, (due, path))
        return sorted(chosen)

    def _remaining(self, version: Version, wall_ns: int) -> float:
        if not self._trust_stamps:
            return self._settle
        age = (wall_ns - max(version.mtime_ns, version.changed_ns)) / 1e9
        return min(max(self._settle - age, 0.0), self._settle)

    def _put_off(self, path: str, candidate: Candidate, due: float) -> None:
        candidate.due = due
        heapq.heappush(self._queue, (due, path))
