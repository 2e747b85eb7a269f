"""Crash isolation: after how many consecutive crashes a run is resumed alone, and when it fails.

From the second crash in a row on the run is isolated; the fifth, the third of it alone, is the
last. Not here: counting crashes (`rescue`), and running alone (`flowcontrol.isolation`).
"""

from __future__ import annotations

CRASHES_BEFORE_ISOLATION = 2
"""After this many consecutive crashes a run is resumed alone; see "Crash isolation"."""

MOST_CRASHES = 5
"""After this many consecutive crashes the run fails."""


def is_isolated(consecutive_crashes: int) -> bool:
    """Whether a run is resumed alone."""
    return consecutive_crashes >= CRASHES_BEFORE_ISOLATION
