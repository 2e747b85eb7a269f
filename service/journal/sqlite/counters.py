"""Counts of runs and dead letters, changed with each batch: exact, and no query is needed."""

from __future__ import annotations

from turnout.service.domain.run import UNFINISHED

_UNFINISHED = frozenset(str(state) for state in UNFINISHED)


class RunCounters:
    """How a batch changes the number of unfinished runs by state and of dead letters by flow.

    `not_undone` counts dead letters whose undo has failed. `unfinished` is the total number of
    unfinished runs, this batch included.
    """

    __slots__ = ("dead", "not_undone", "states", "unfinished")

    def __init__(self, unfinished: int) -> None:
        self.states: dict[str, int] = {}
        self.dead: dict[str, int] = {}
        self.not_undone: dict[str, int] = {}
        self.unfinished = unfinished

    def child(self) -> RunCounters:
        """Return empty counters for a part that may be rolled back."""
        return RunCounters(self.unfinished)

    def move(self, before: str | None, after: str | None, count: int = 1) -> None:
        """Count runs that change state; None stands for "not in the journal"."""
        states = self.states
        if before in _UNFINISHED:
            states[before] = states.get(before, 0) - count
            self.unfinished -= count
        if after in _UNFINISHED:
            states[after] = states.get(after, 0) + count
            self.unfinished += count

    def add_dead_letters(self, flow: str, count: int = 1) -> None:
        """Count dead letters added to a flow; a negative count removes them."""
        self.dead[flow] = self.dead.get(flow, 0) + count

    def add_not_undone(self, flow: str, count: int = 1) -> None:
        """Count dead letters of a flow whose undo has failed; a negative count removes them."""
        self.not_undone[flow] = self.not_undone.get(flow, 0) + count

    def add(self, part: RunCounters) -> None:
        """Add the counts of a child."""
        for state, count in part.states.items():
            self.states[state] = self.states.get(state, 0) + count
        for flow, count in part.dead.items():
            self.dead[flow] = self.dead.get(flow, 0) + count
        for flow, count in part.not_undone.items():
            self.not_undone[flow] = self.not_undone.get(flow, 0) + count
        self.unfinished = part.unfinished
