"""What operators set and end: pauses, limits in place of the declared ones, discarded runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from turnout.service.domain.run import Run

EVERYTHING = "*"
"""The name under which everything is paused: no flow starts a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPause:
    """A pause: of `flow:NAME`, of `trigger:NAME`, or of `EVERYTHING`.

    It ends at `until`, or with None when somebody ends it. `by` is who paused it, `note` says why.
    """

    name: str
    since: datetime
    until: datetime | None = None
    note: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredOverride:
    """A limit that holds until an instant, instead of the one that a flow file says.

    `name` is `limit:NAME` for a named limit, else `flow:FLOW/PLACE`. `by` is who has set it, `note`
    says why.
    """

    name: str
    count: int
    since: datetime
    until: datetime
    note: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True)
class Discarded:
    """Runs that were ended before they began; if `more`, there may be others up to `up_to`."""

    runs: Sequence[Run]
    up_to: int
    more: bool

    @property
    def last(self) -> int:
        """The seq of the last of them."""
        return self.runs[-1].seq if self.runs else self.up_to
