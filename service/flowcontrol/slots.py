"""Slots: how many runs of all flows run at once (the setting `concurrency`)."""

from __future__ import annotations

from datetime import datetime

from .gate import Answer, Candidate, Gate


class Slots(Gate):
    """The slots of the process; every running run has one."""

    name = "slot"
    shared = True

    def __init__(self, count: int) -> None:
        self.free = count

    def check(self, run: Candidate, now: datetime) -> Answer:
        """Let a run pass while a slot is free."""
        return None if self.free > 0 else "behind"

    def enter(self, run: Candidate, now: datetime) -> None:
        """Take a slot."""
        self.free -= 1

    def leave(self, run: Candidate) -> None:
        """Give the slot back."""
        self.free += 1

    def places(self) -> int:
        """Return how many slots are free."""
        return self.free
