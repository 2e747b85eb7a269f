"""Reads of events: those that people look for, that runs wait for, and that came in a period."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import accumulate, takewhile
from typing import Any

import apsw
import orjson

from turnout.service.domain.event import Event
from turnout.service.journal.records import (
    Arrival,
    Filter,
    PastMember,
    PastWindow,
    StoredEvent,
)

from . import arrivals
from .dedupe import found_by_id
from .events import EVENT_COLUMNS, LISTED_EVENT_COLUMNS, event_from, stored_event_from
from .filters import events_where, named_whole
from .names import event_named
from .reading import Reading
from .statements import load
from .values import instant, micros

_MOST_EVENTS = 1000
_MOST_BODY_BYTES = 16 * 2**20
"""How many events of one id, and how much of their bodies, are read at once."""
_NEWEST = 50_000
_SQL = load("reads")


class EventReading(Reading):
    """Finds events, with their runs and decisions."""

    async def event(self, event_id: str, *, source: str | None = None) -> list[StoredEvent]:
        """Return the events with this id, newest first: several when sources share it.

        Older ones are left out past a bound on memory; `source` selects among them. A short form
        of the id will do; raises `Ambiguous`.
        """

        def query(connection: apsw.Connection) -> list[StoredEvent]:
            found = _events_by_id(connection, event_id, source)
            whole = None if found else event_named(connection, event_id)
            return found if whole is None else _events_by_id(connection, whole, source)

        return await self.read(query)

    async def event_by_seq(self, event_seq: int) -> StoredEvent | None:
        """Return the event with this seq."""
        found = await self.read(
            lambda connection: _stored_events(connection, "e.seq = ?", [event_seq], 1)
        )
        return found[0] if found else None

    async def event_of(self, run_seq: int) -> StoredEvent | None:
        """Return the event of a run."""
        where = "e.seq = (SELECT event_seq FROM runs WHERE seq = ?)"
        found = await self.read(lambda connection: _stored_events(connection, where, [run_seq], 1))
        return found[0] if found else None

    async def events(self, which: Filter) -> list[StoredEvent]:
        """Return matching events, newest first; `flow` and `state` select by their runs.

        Bodies, headers, parameters and extensions are left out.
        """

        def query(connection: apsw.Connection) -> list[StoredEvent]:
            where, values = events_where(named_whole(connection, which))
            return _stored_events(
                connection, where, values, which.limit, columns=LISTED_EVENT_COLUMNS
            )

        return await self.read(query)

    async def arrivals(
        self,
        flow: str,
        triggers: Sequence[str],
        *,
        since: datetime,
        until: datetime,
        after_seq: int = 0,
        limit: int = 500,
    ) -> list[Arrival]:
        """Return the events of these triggers, and others that the flow has a run of, as they came.

        Those of a period, after a seq; fewer than `limit` where their bodies are large.
        """
        period = (micros(since), micros(until))
        return await self.read(
            lambda connection: arrivals.arrivals(
                connection, flow, triggers, *period, after_seq, limit
            )
        )

    async def runs_beside(
        self, flow: str, *, since: datetime, accepted_since: datetime, until: datetime
    ) -> list[Arrival]:
        """Return the runs of a flow that count in a period and did not come with its events."""
        period = (micros(since), micros(accepted_since), micros(until))
        return await self.read(lambda connection: arrivals.runs_beside(connection, flow, *period))

    async def past_windows(
        self, flow: str, seqs: Sequence[int], *, until: datetime
    ) -> list[PastWindow]:
        """Return these windows of a flow, by seq, as they were at an instant."""
        at = micros(until)
        return await self.read(lambda connection: arrivals.past_windows(connection, flow, seqs, at))

    async def windows_across(
        self, flow: str, *, since: datetime, opened_before: datetime, until: datetime
    ) -> list[PastWindow]:
        """Return windows of a flow that were open at an instant, or opened since and before one."""
        period = (micros(since), micros(opened_before), micros(until))
        return await self.read(
            lambda connection: arrivals.windows_across(connection, flow, *period)
        )

    async def past_members(self, window_seq: int, *, until: datetime) -> list[PastMember]:
        """Return the members of a window that came before an instant, in order."""
        at = micros(until)
        return await self.read(lambda connection: arrivals.past_members(connection, window_seq, at))

    async def typical_duration(self, flow: str, *, since: datetime) -> timedelta | None:
        """Return the median time from arrival to end of the flow's runs that have succeeded."""
        took = await self.read(
            lambda connection: arrivals.typical_microseconds(connection, flow, micros(since))
        )
        return None if took is None else timedelta(microseconds=took)

    async def awaited(
        self, name: str, run_seq: int, after_seq: int, limit: int, *, is_pattern: bool = False
    ) -> list[tuple[int, Event]]:
        """Return the first events after `after_seq` awaited under `name`, with their seq."""
        condition, values = awaited_as(name, is_pattern=is_pattern)
        return await self.read(
            lambda connection: [
                (row[0], event_from(row))
                for row in connection.execute(
                    f"SELECT {EVENT_COLUMNS} FROM events AS e INDEXED BY events_awaited"
                    f" WHERE e.awaited IS NOT NULL AND {condition} AND e.seq > ?"
                    " AND e.accepted_at >= (SELECT queued_at FROM runs WHERE seq = ?)"
                    " ORDER BY e.seq LIMIT ?",
                    (*values, after_seq, run_seq, limit),
                )
            ]
        )

    async def shapes(self) -> list[Sequence[str]]:
        """Return the distinct shapes of open waits for events."""
        rows: list[Any] = await self.read(
            lambda connection: connection.execute(_SQL["shapes"]).fetchall()
        )
        return [orjson.loads(row[0]) for row in rows]

    async def last_accepted(self) -> dict[str, datetime]:
        """Return when the last event of each trigger was accepted, of the newest 50,000 events."""
        rows: list[Any] = await self.read(
            lambda connection: connection.execute(_SQL["last_accepted"], (_NEWEST,)).fetchall()
        )
        return {trigger: instant(at) for trigger, at in rows}


def _how_many(connection: apsw.Connection, where: str, values: Sequence[Any]) -> int:
    """Return how many of the newest events have bodies within a bound; at least two.

    So the caller can tell one event from several.
    """
    lengths = connection.execute(
        f"SELECT length(e.body) FROM events AS e WHERE {where} ORDER BY e.seq DESC LIMIT ?",
        [*values, _MOST_EVENTS],
    )
    sums = accumulate(length for (length,) in lengths)
    return max(2, sum(1 for _ in takewhile(lambda total: total <= _MOST_BODY_BYTES, sums)))


def _events_by_id(
    connection: apsw.Connection, event_id: str, source: str | None
) -> list[StoredEvent]:
    where, values = found_by_id(event_id)
    if source is not None:
        where, values = f"{where} AND e.source = ?", [*values, source]
    return _stored_events(connection, where, values, _how_many(connection, where, values))


def _stored_events(
    connection: apsw.Connection,
    where: str,
    values: Sequence[Any],
    limit: int,
    *,
    columns: str = EVENT_COLUMNS,
) -> list[StoredEvent]:
    rows = connection.execute(
        f"SELECT {columns}, e.accepted_at, e.decisions,"
        " (SELECT json_group_array(id) FROM"
        "  (SELECT id FROM (SELECT seq, id FROM runs WHERE event_seq = e.seq"
        "   UNION SELECT r.seq, r.id FROM window_events AS m"
        "   CROSS JOIN runs AS r ON r.window_seq = m.window_seq"
        "   WHERE m.event_seq = e.seq) ORDER BY seq)),"
        " (SELECT json_group_array(items) FROM"
        "  (SELECT items FROM decisions WHERE event_seq = e.seq ORDER BY ordinal))"
        f" FROM events AS e WHERE {where} ORDER BY e.seq DESC LIMIT ?",
        [*values, limit],
    )
    return [
        stored_event_from(row, accepted_at, orjson.loads(runs), [first, *orjson.loads(later)])
        for *row, accepted_at, first, runs, later in rows
    ]


def awaited_as(name: str, *, is_pattern: bool) -> tuple[str, list[str]]:
    """Return the condition that an event is awaited under a name, and its values.

    Planned once, a GLOB finds no range of an index, so that of the pattern's beginning is given.
    """
    if not is_pattern:
        return "e.awaited = ?", [name]
    beginning = name.partition("*")[0]
    pattern = name.replace("[", "[[]").replace("?", "[?]")
    condition = "e.awaited >= ? AND e.awaited < ? AND e.awaited GLOB ?"
    return condition, [beginning, f"{beginning}\U0010ffff", pattern]
