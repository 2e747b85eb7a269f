"""Which files are about to be emitted, and when each has been at rest for long enough.

A file is at rest when inode, size, mtime and ctime have been the same for the settle time. The
file's own timestamps count: one that was last changed long ago is at rest at first sight, so a full
folder does not delay a start. On network file systems the server's clock writes the timestamps;
there only the time of watching counts.

Pure decisions over the loop clock (`now`, seconds); nothing here touches a disk.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from .scan import Version

CONFIRM_SECONDS = 0.04
"""How long a file that was renamed into place is watched for a second notification.

Longer than a notification takes, so that a write from before the first look shows.
"""

READ_RETRY_SECONDS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""When a file that cannot be read is retried; after the last retry it is emitted as it is."""


@dataclass(slots=True)
class Candidate:
    """A file in a version that is not emitted yet; looked at again when `due`.

    `renamed` is true while everything suggests a finished file that was renamed into place.
    `failures` counts the times it could not be read.
    """

    version: Version
    due: float
    renamed: bool = False
    failures: int = 0


class SettleTimer:
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

    def waiting(self) -> list[str]:
        """Return the files that are not emitted yet."""
        return list(self._candidates)

    def see(
        self, path: str, version: Version, *, now: float, wall_ns: int, renamed: bool = False
    ) -> None:
        """Note a file's version; the same version again changes nothing."""
        known = self._candidates.get(path)
        if known is not None and known.version == version:
            return
        wait = self._remaining(version, wall_ns)
        if renamed and wait > CONFIRM_SECONDS:
            wait = CONFIRM_SECONDS
        else:
            renamed = False
        self._candidates[path] = candidate = Candidate(version, now + wait, renamed)
        heapq.heappush(self._queue, (candidate.due, path))

    def touched(self, path: str, *, now: float, wall_ns: int) -> None:
        """Note a change: the file was not simply renamed into place."""
        candidate = self._candidates.get(path)
        if candidate is not None and candidate.renamed:
            candidate.renamed = False
            self._put_off(path, candidate, now + self._remaining(candidate.version, wall_ns))

    def unreadable(self, path: str, *, now: float) -> bool:
        """Count a failed look and put the file off; False when it was put off often enough."""
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
