"""What one file trigger watches, and how: the settings of its watch."""

from __future__ import annotations

from dataclasses import dataclass

from .pattern import Pattern
from .scan import Identity, Walk, WalkReport, walk


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to watch and how; `avoid` holds folders below the root that are left alone.

    `private` is the service's own data folder, left alone wherever the pattern meets it; `targets`
    are the folders that files are moved to. `by_content`: files are read before they are emitted.
    """

    pattern: Pattern
    settle_seconds: float
    rescan_seconds: float
    poll: bool
    max_depth: int
    avoid: frozenset[str]
    private: str | None = None
    targets: tuple[str, ...] = ()
    by_content: bool = False

    def walk(self, report: WalkReport, *, below: str, private: Identity | None) -> Walk:
        """Walk at and below a folder; see `scan.walk`."""
        return walk(
            self.pattern.root,
            self.pattern,
            report,
            below=below,
            avoid=self.avoid,
            private=private,
            max_depth=self.max_depth,
        )
