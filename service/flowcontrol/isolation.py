"""Isolation: a run during which the process died twice in a row runs without others of its kind.

If the process dies again, the isolated run is the cause.
"""

from __future__ import annotations

from datetime import datetime

from turnout.service.domain.waiting import Cause

from .gate import Answer, Candidate, Gate


class Isolation(Gate):
    """Isolated runs run one at a time over all flows; other runs are not asked."""

    name = "isolation"
    shared = True
    cause = Cause.ISOLATION

    def __init__(self) -> None:
        self._inside = 0

    def key(self, run: Candidate) -> str | None:
        """Return the one key that all isolated runs share."""
        return ""

    def check(self, run: Candidate, now: datetime) -> Answer:
        """Let an isolated run pass while no other runs."""
        return "behind" if self._inside else None

    def enter(self, run: Candidate, now: datetime) -> None:
        """Count the isolated run that runs."""
        self._inside += 1

    def leave(self, run: Candidate) -> None:
        """Let the next one pass."""
        self._inside -= 1
