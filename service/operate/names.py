"""Names that operators write: what was probably meant by one that does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from turnout.service.domain.errors import NotFound


def no_run(name: str) -> NotFound:
    """Return the error for a run that the journal does not hold."""
    return NotFound(f"no run {name!r}; `turnout runs` lists them")


def no_event(name: str) -> NotFound:
    """Return the error for an event that the journal does not hold."""
    return NotFound(f"no event {name!r}; `turnout events` lists them")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'bill'?` if a known name is close, else nothing."""
    close = get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""
