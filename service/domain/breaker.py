"""A breaker as the journal keeps it: whether a dependency of flows is in use, and since when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class BreakerState(StrEnum):
    """Whether runs that need a dependency may start.

    `closed`: they may. `open`: they wait. `probing`: one goes alone to find out.
    """

    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBreaker:
    """The breaker of a dependency since its last change of state.

    `generation` grows with each change. `until` is when an open one tries a run again, `down_since`
    when it was last closed, None if it is now. `reason` says in words why it is open.
    """

    name: str
    state: BreakerState
    generation: int
    changed_at: datetime
    until: datetime | None = None
    down_since: datetime | None = None
    reason: str = ""
