"""The resume cache: recorded steps of waiting runs, in memory between two of their attempts.

A run that waits for many children is woken again and again; reading its thousands of steps each
time would cost more than the children do. The cache holds the claim of the last attempt; only the
steps that this attempt recorded are read again. It is bounded: a run that is not in it is read
from the journal.
"""

from __future__ import annotations

from turnout.service.journal.records import Claim

LEAST_STEPS = 64
MOST_STEPS = 100_000
MOST_BYTES = 16 * 2**20


class ResumeCache:
    """Holds the claims of waiting runs; the loop calls `keep`, the writing thread `take`."""

    def __init__(self) -> None:
        self._claims: dict[int, Claim] = {}

    def keep(self, claim: Claim) -> None:
        """Keep the claim of an attempt whose run now waits, and evict the oldest past the bound."""
        if len(claim.recorded) < LEAST_STEPS:
            return
        self._claims[claim.run_seq] = claim
        while self._claims and not self._fit(tuple(self._claims.values())):
            self._claims.pop(next(iter(self._claims)), None)

    @staticmethod
    def _fit(claims: tuple[Claim, ...]) -> bool:
        steps = sum(len(claim.recorded) for claim in claims)
        return steps <= MOST_STEPS and sum(claim.recorded_bytes for claim in claims) <= MOST_BYTES

    def take(self, run_seq: int, token: int, state: str) -> Claim | None:
        """Return the claim a run has waited under, if it is cached and still the latest."""
        claim = self._claims.pop(run_seq, None)
        return claim if claim is not None and (claim.token, state) == (token, "waiting") else None
