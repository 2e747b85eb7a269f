"""What one file trigger watches, and how: the settings of its watch."""

from __future__ import annotations

from dataclasses import dataclass

from .pattern import Pattern
from .scan import Identity, Tour, Walk, walk


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to watch and how; `avoid` holds folders below the root to leave alone.

    `private` is the service's own data folder, which is left alone wherever the pattern meets it;
    `targets` are the folders that files are moved to.
    """

    pattern: Pattern
    settle_seconds: float
    rescan_seconds: float
    poll: bool
    max_depth: int
    avoid: frozenset[str]
    private: str | None = None
    targets: tuple[str, ...] = ()

    def walk(self, tour: Tour, *, below: str, private: Identity | None) -> Walk:
        """Walk at and below a folder; see `scan.walk`."""
        return walk(
            self.pattern.root,
            self.pattern,
            tour,
            below=below,
            avoid=self.avoid,
            private=private,
            max_depth=self.max_depth,
        )
