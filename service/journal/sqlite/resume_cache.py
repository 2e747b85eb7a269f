"""The recorded steps of runs that wait for many children, in memory between two of their attempts.

Such a run is woken again and again, and reading thousands of steps each time would cost more than
the children do. What is kept is what the last attempt was given; the steps that it recorded are
read again. Bounded, and only a shortcut: what is not here is read from the journal.
"""

from __future__ import annotations

from turnout.service.journal.records import Claim

LEAST_STEPS = 64
MOST_STEPS = 100_000
MOST_BYTES = 16 * 2**20


class KeptSteps:
    """Keeps claims whose runs wait; used by the loop (`keep`) and the writing thread (`take`)."""

    def __init__(self) -> None:
        self._claims: dict[int, Claim] = {}

    def keep(self, claim: Claim) -> None:
        """Keep what an attempt was given, now that its run waits; the oldest make room for it."""
        if len(claim.recorded) < LEAST_STEPS:
            return
        self._claims[claim.run_seq] = claim
        while self._claims and not self._fit(tuple(self._claims.values())):
            self._claims.pop(next(iter(self._claims)), None)

    @staticmethod
    def _fit(claims: tuple[Claim, ...]) -> bool:
        steps = sum(len(claim.recorded) for claim in claims)
        return steps <= MOST_STEPS and sum(claim.kept_bytes for claim in claims) <= MOST_BYTES

    def take(self, run_seq: int, token: int, state: str) -> Claim | None:
        """Return the claim a run has waited under since, if it is here and nothing came between."""
        claim = self._claims.pop(run_seq, None)
        return claim if claim is not None and (claim.token, state) == (token, "waiting") else None
