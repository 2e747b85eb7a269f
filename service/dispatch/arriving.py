"""Runs that are being written as queued, and which older runs they take the place of.

Under `mode="latest"` the write of a new run ends those of its key that wait for their first start.
To claim one of these meanwhile would be in vain: under a steady stream of events none would start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from turnout.service.domain.conditions import MODE_RULE
from turnout.service.journal.records import NewRun, Queued


class Arriving:
    """The runs of one flow that are being written as queued."""

    __slots__ = ("_newest", "_runs")

    def __init__(self) -> None:
        self._runs: dict[str, NewRun] = {}
        self._newest: Counter[str] = Counter()  # how many take the place of older ones, by key

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[NewRun]:
        return iter(self._runs.values())

    def add(self, run: NewRun) -> None:
        """Add a run whose write is submitted in this turn of the loop."""
        self._runs[run.id] = run
        key = _takes_place_at(run)
        if key is not None:
            self._newest[key] += 1

    def remove(self, run_id: str) -> None:
        """Remove a run: it is written, or it was not; do nothing if it is not here."""
        run = self._runs.pop(run_id, None)
        key = None if run is None else _takes_place_at(run)
        if key is not None:
            self._newest[key] -= 1
            if not self._newest[key]:
                del self._newest[key]

    def take_over(self, other: Arriving) -> None:
        """Take the runs of a flow that has been renamed."""
        for run in list(other):
            other.remove(run.id)
            self.add(run)

    def outdates(self, run: Queued) -> bool:
        """Whether one of them takes the place of an older run."""
        return bool(self._newest) and _waits(run) and _key(run) in self._newest

    def all_outdated_by(self, new: NewRun, waiting: Iterable[Queued]) -> bool:
        """Whether a new run takes the place of all of them, and of those that are `waiting`."""
        key = _takes_place_at(new)
        if key is None or self._newest[key] < len(self._runs):
            return False
        return all(_waits(run) and _key(run) == key for run in waiting)


def _takes_place_at(new: NewRun) -> str | None:
    """Return the key of a run with `mode="latest"`; None for every other run."""
    asked = new.conditions
    return _key(new) if asked is not None and asked.mode == "latest" else None


def _waits(run: Queued) -> bool:
    """Whether a run waits for its first start."""
    return not (run.begun or run.is_due)


def _key(run: NewRun | Queued) -> str | None:
    return None if run.keys is None else run.keys.get(MODE_RULE)
