"""Slots: how many runs of all flows run at once (the setting `concurrency`)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from turnout.service.domain.decisions import Fact
from turnout.service.domain.waiting import Cause

from .gate import Answer, Candidate, Gate


class Slots(Gate):
    """The slots of the process; every running run has one."""

    name = "slot"
    shared = True
    cause = Cause.SLOT

    def __init__(self, count: int) -> None:
        self.free = count
        self._count = count

    def check(self, run: Candidate, now: datetime) -> Answer:
        """Let a run pass while a slot is free."""
        return None if self.free > 0 else "behind"

    def facts(self, run: Candidate) -> Mapping[str, Fact]:
        """Return how many slots are taken."""
        return {"count": self._count - self.free, "limit": self._count}

    def enter(self, run: Candidate, now: datetime) -> None:
        """Take a slot."""
        self.free -= 1

    def leave(self, run: Candidate) -> None:
        """Give the slot back."""
        self.free += 1

    def free_slots(self) -> int:
        """Return how many slots are free."""
        return self.free
