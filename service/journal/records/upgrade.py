"""What an upgrade of a journal takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradePlan:
    """What brings a journal of version `found` to `newest`: no steps if that is the same.

    `needed_bytes` must be free, for the snapshot and what is written besides. `seconds` is an
    estimate from the size.
    """

    found: int
    newest: int
    steps: Sequence[str]
    bytes: int
    needed_bytes: int
    free_bytes: int
    seconds: float

    @property
    def has_space(self) -> bool:
        """Whether so much is free."""
        return self.free_bytes >= self.needed_bytes
