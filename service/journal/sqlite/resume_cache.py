"""The resume cache: recorded steps of waiting runs, in memory between two of their attempts.

A run that waits for many children is woken again and again; reading its thousands of steps each
time would cost more than the children do. The cache holds the steps the last attempt resumed from;
only those that this attempt recorded are read again. It is bounded: a run that is not in it is read
from the journal.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from turnout.service.journal.records import ClaimedRun, StepRecord

LEAST_STEPS = 64
MOST_STEPS = 100_000
MOST_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class CachedSteps:
    """What a claim resumed from, which keys its attempt recorded, and what it noted.

    `polls` are the steps at which the run polled at the claim.
    """

    token: int
    recorded: dict[str, StepRecord]
    recorded_bytes: int
    changed: Collection[str]
    progress: Mapping[str, Any]
    polls: frozenset[str]


class ResumeCache:
    """Holds the steps of waiting runs; the loop calls `keep`, the writing thread `take`."""

    def __init__(self) -> None:
        self._runs: dict[int, CachedSteps] = {}

    def keep(self, run: ClaimedRun, changed: Collection[str], progress: Mapping[str, Any]) -> None:
        """Keep the steps of a run that waits now, and evict the oldest past the bound.

        The attempt is over, so its recorded steps belong to the cache from now on.
        """
        recorded = run.recorded
        if len(recorded) < LEAST_STEPS or not isinstance(recorded, dict):
            return
        self._runs[run.claim.run_seq] = CachedSteps(
            run.claim.token, recorded, run.recorded_bytes, changed, progress, run.polls
        )
        while self._runs and not self._fit(tuple(self._runs.values())):
            self._runs.pop(next(iter(self._runs)), None)

    @staticmethod
    def _fit(runs: tuple[CachedSteps, ...]) -> bool:
        steps = sum(len(run.recorded) for run in runs)
        return steps <= MOST_STEPS and sum(run.recorded_bytes for run in runs) <= MOST_BYTES

    def take(self, run_seq: int, token: int, state: str) -> CachedSteps | None:
        """Return the steps of a run that waits, if they are cached and still the latest."""
        run = self._runs.pop(run_seq, None)
        return run if run is not None and (run.token, state) == (token, "waiting") else None
