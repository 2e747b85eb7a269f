"""What comes next while no service is running."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Tick:
    """The next tick of a timer, and the flows that it starts."""

    trigger: str
    at: datetime
    flows: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NextWake:
    """When a service that has gone idle must be started again, None if never, and what ticks.

    Whoever connects to `url` has it started too.
    """

    url: str
    at: datetime | None
    ticks: Sequence[Tick]
