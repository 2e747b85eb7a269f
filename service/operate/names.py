"""Runs and events that operators name and the journal does not hold."""

from __future__ import annotations

from turnout.service.domain.errors import NotFound


def no_run(name: str) -> NotFound:
    """Return the error for a run that the journal does not hold."""
    return NotFound(f"no run {name!r}; `turnout runs` lists them")


def no_event(name: str) -> NotFound:
    """Return the error for an event that the journal does not hold."""
    return NotFound(f"no event {name!r}; `turnout events` lists them")


def no_event_or_run(name: str) -> NotFound:
    """Return the error for what is neither an event nor a run of the journal."""
    return NotFound(f"no event and no run {name!r}; `turnout events` and `turnout runs` list them")
