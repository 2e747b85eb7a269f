"""Counting runs as a batch changes them, so that counts are exact and cost no query."""

from __future__ import annotations

from turnout.service.domain.run import UNFINISHED

_UNFINISHED = frozenset(str(state) for state in UNFINISHED)


class Tally:
    """How a batch changes the number of unfinished runs by state and of dead letters by flow.

    `not_undone` counts the dead letters whose undo is not done. `unfinished` is how many runs there
    are in all, this batch included.
    """

    __slots__ = ("dead", "not_undone", "states", "unfinished")

    def __init__(self, unfinished: int) -> None:
        self.states: dict[str, int] = {}
        self.dead: dict[str, int] = {}
        self.not_undone: dict[str, int] = {}
        self.unfinished = unfinished

    def child(self) -> Tally:
        """Return an empty tally for a part that may be undone."""
        return Tally(self.unfinished)

    def moved(self, before: str | None, after: str | None, count: int = 1) -> None:
        """Count runs that went from one state to another; None is outside the journal."""
        states = self.states
        if before is not None and before in _UNFINISHED:
            states[before] = states.get(before, 0) - count
            self.unfinished -= count
        if after is not None and after in _UNFINISHED:
            states[after] = states.get(after, 0) + count
            self.unfinished += count

    def died(self, flow: str, count: int = 1) -> None:
        """Count dead letters that came (or went, negative) for a flow."""
        self.dead[flow] = self.dead.get(flow, 0) + count

    def undo_failed(self, flow: str, count: int = 1) -> None:
        """Count dead letters of a flow that came to have an undo to finish (or have no more)."""
        self.not_undone[flow] = self.not_undone.get(flow, 0) + count

    def add(self, part: Tally) -> None:
        """Take over what a child counted."""
        for state, count in part.states.items():
            self.states[state] = self.states.get(state, 0) + count
        for flow, count in part.dead.items():
            self.dead[flow] = self.dead.get(flow, 0) + count
        for flow, count in part.not_undone.items():
            self.not_undone[flow] = self.not_undone.get(flow, 0) + count
        self.unfinished = part.unfinished
