"""The start timeout: `start_timeout="5m"` ends a run as skipped that has waited longer to start.

The time counts from the instant at which the run was due to its first start: through pauses,
limits, rates, and while the service was down. It is looked at when the turn of the run comes.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from turnout.service.domain.errors import SetupError
from turnout.service.domain.units import parse_duration

from .gate import Candidate


def parse_start_timeout(value: str | timedelta | None) -> timedelta | None:
    """Read a start timeout, None for none; raises `SetupError` for one of zero."""
    try:
        length = None if value is None else parse_duration(value)
    except SetupError as error:
        raise SetupError(f"start_timeout={value!r}: {error.message}") from None
    if length == timedelta(0):
        raise SetupError(
            f"start_timeout={value!r}: no run starts in no time; leave it out for no bound"
        )
    return length


def waited(run: Candidate, now: datetime) -> timedelta:
    """Return how long a run has waited since it was due."""
    since = run.due_at or run.queued_at
    return timedelta(0) if since is None else now - since
