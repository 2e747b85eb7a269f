"""An ended run of a flow, as a later run of it may read it."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from turnout.service.domain.run import RunError, RunState


class EndedRun(NamedTuple):
    """A run that has ended: its result as JSON, None where it has none or a larger one than asked.

    `left_out` tells the latter.
    """

    id: str
    state: RunState
    result: bytes | None
    left_out: bool
    error: RunError | None
    reason: str | None
    queued_at: datetime
    finished_at: datetime
