"""Finding a run or an event by the short form of its id (`domain.short_ids`).

Whole ids are found by an index. An index of last characters would grow in random places at every
write, so those are looked for among the newest rows.
"""

from __future__ import annotations

import apsw

from turnout.service.domain.short_ids import MOST_NAMED, Ambiguous, ends_of

from .statements import load

_SQL = load("reads")
_NEWEST_RUNS = 1_000_000
_NEWEST_EVENTS = 100_000
"""How many are looked through: under half a second."""


def run_named(connection: apsw.Connection, name: str) -> str | None:
    """Return the id of the run with this short form; raises `Ambiguous`, None if it fits none."""
    ends = ends_of(name)
    if ends is None:
        return None
    first, last = ends
    found: set[str] = set()
    if first == last:  # one part of an id, its first or its last characters
        # Everything that starts with the prefix sorts before the prefix's successor.
        after = name[:-1] + chr(ord(name[-1]) + 1)
        found |= _ids(connection, "runs_that_begin", name, after, MOST_NAMED)
        first = ""
    found |= _ids(connection, "runs_that_look", first, last, MOST_NAMED, _NEWEST_RUNS)
    return _only("run", name, found)


def event_named(connection: apsw.Connection, name: str) -> str | None:
    """Return the event id with this short form; raises `Ambiguous`, None if it fits none."""
    ends = ends_of(name)
    if ends is None:
        return None
    first, last = ends
    if first == last:
        found = _ids(connection, "minted_events_that_end", name, MOST_NAMED, _NEWEST_EVENTS)
    else:
        found = _ids(connection, "events_that_look", first, last, MOST_NAMED, _NEWEST_EVENTS)
    return _only("event", name, found)


def _ids(connection: apsw.Connection, statement: str, *values: str | int) -> set[str]:
    return {row[0] for row in connection.execute(_SQL[statement], values)}


def _only(what: str, name: str, found: set[str]) -> str | None:
    if len(found) > 1:
        raise Ambiguous(what, name, found)
    return next(iter(found), None)
