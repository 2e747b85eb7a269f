"""How much of a backlog is held in memory; the rest stays in the journal."""

from __future__ import annotations

from dataclasses import dataclass

from turnout.service.journal.records import Queued

WINDOW = 256
"""Queued runs a queue reads at once and keeps in memory; also the bound on blocked runs."""

MEMORY_BYTES = 24 * 2**20
"""Memory for runs beyond `WINDOW`, over all queues: these need not be read from the journal."""

# Measured: with a burst of 300-byte bodies the process grows by what is charged here.
_RUN_BYTES = 1024
_CLAIM_BYTES = 2048
_DECODED_BYTES = 4  # for each byte of a body


@dataclass(slots=True)
class Memory:
    """The bytes left for runs beyond their queue's window; may fall slightly below 0."""

    left: int = MEMORY_BYTES

    @property
    def used_bytes(self) -> int:
        """How much is charged now."""
        return MEMORY_BYTES - self.left

    def charge(self, run: Queued) -> None:
        """Charge the memory of a run until `give_back`."""
        run.weight = _RUN_BYTES
        if run.claimed is not None:
            run.weight += _CLAIM_BYTES + _DECODED_BYTES * len(run.claimed.event.body)
        self.left -= run.weight

    def give_back(self, run: Queued) -> None:
        """Return what a run was charged, if it was charged."""
        self.left += run.weight
        run.weight = 0
