"""Reads for the running service: what is queued, due, waited for, and ready for its action.

Each is one statement, and many rows come through one step of the database. Not here: what people
see (`reader`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import apsw
import orjson

from turnout.service.domain.event import Event
from turnout.service.domain.run import Start
from turnout.service.journal.records import ORDER_RULE, EndedEvent, Queued, QueuedPage

from . import starts
from .connection import read_all
from .events import EVENT_COLUMNS, event_from, failure_from
from .reader import SqliteReader
from .runs import QUEUED_COLUMNS, UNFINISHED_STATES, queued_from
from .statements import load
from .values import dump, dump_list, instant, micros

_SQL = load("reads")
_STRETCH = 100_000
"""How many seqs one read of queued runs looks at."""
_MOST_SEARCHED = 8
"""So many keys of a rule are searched for in the text of a run's keys, in half the time that
reading it takes. No other text can hold `"limit":"a"`: inside a value its quotes are escaped."""
_NO_END = 2**62
_QUEUED = f"json_array({QUEUED_COLUMNS}) AS item"


def queued_text(*, of_class: bool, which: str = "TRUE") -> str:
    """Return the query for queued runs of a flow (?1), or of one class (?5), in arrival order.

    After an arrival (?2), up to another (?3), so many (?4). Two indexes are read side by side:
    runs go by their seq, but for those that have come again.
    """
    index = "runs_by_priority" if of_class else "runs_by_state"
    asked = f"{'r.priority = ?5' if of_class else '?5 IS NULL'} AND ({which})"
    once, again = (
        f"SELECT {_QUEUED}, {number} AS arrived FROM runs AS r INDEXED BY {name}"
        f" WHERE r.state = 'queued' AND r.flow = ?1 AND {number} > ?2 AND {number} <= ?3"
        f" AND {asked}"
        for name, number in ((index, "r.seq"), ("runs_by_arrival", "r.arrival"))
    )
    return (
        f"SELECT item FROM ({once} AND r.arrival IS NULL UNION ALL {again}"
        " ORDER BY arrived LIMIT ?4)"
    )


QUEUED_IN_ORDER = (
    f"SELECT {_QUEUED} FROM runs AS r INDEXED BY runs_by_order"
    " WHERE r.state = 'queued' AND r.flow = ?1 AND r.order_key = ?2"
    " AND coalesce(r.arrival, r.seq) > ?3 ORDER BY coalesce(r.arrival, r.seq) LIMIT ?4"
)
"""The queued runs of a flow (?1) and an ordering key (?2), after an arrival (?3), so many (?4)."""


def _at_key(keys: str, number: str) -> str:
    return (
        f"SELECT {_QUEUED}, {number} AS arrived FROM {keys} CROSS JOIN runs AS r"
        f" ON r.seq = k.run_seq WHERE k.flow = ?1 AND k.place = ?2 AND k.key = ?3"
        f" AND {number} > ?4 AND +r.state = 'queued'"
        " AND (?5 IS NULL OR coalesce(+r.priority, 2) = ?5)"
    )


QUEUED_AT_KEY = (
    f"SELECT item FROM ({_at_key('run_keys AS k', 'k.run_seq')} AND k.arrival IS NULL UNION ALL"
    f" {_at_key('run_keys AS k INDEXED BY run_keys_by_arrival', 'k.arrival')}"
    " ORDER BY arrived LIMIT ?6)"
)
"""The queued runs of a flow (?1), or of one class (?5) of it, with a key (?3) by a rule (?2).

After an arrival (?4), so many (?6), in arrival order.
"""


def _due(after: str) -> str:
    return (
        f"SELECT {_QUEUED}, r.due_at AS at, r.seq AS seq FROM runs AS r INDEXED BY runs_due"
        " WHERE (r.state = 'scheduled' OR r.state = 'retrying' OR r.state = 'waiting')"
        f" AND r.due_at <= ?1 AND {after}"
    )


DUE = (
    f"SELECT item FROM ({_due('r.due_at = ?2 AND r.seq > ?3')} UNION ALL {_due('r.due_at > ?2')}"
    " ORDER BY at, seq LIMIT ?4)"
)
"""The runs that are due at an instant (?1), after one (?2, ?3), so many (?4).

In two parts, so that of thousands that are due at one instant none is looked at twice.
"""

_WINDOWED = (  # the runs of the windows that an event is in
    "window_events AS m CROSS JOIN runs AS r ON r.window_seq = m.window_seq"
    " WHERE m.event_seq = e.seq"
)
_IN_WINDOW = (
    "EXISTS (SELECT 1 FROM window_events AS m CROSS JOIN windows AS w ON w.seq = m.window_seq"
    " WHERE m.event_seq = e.seq AND w.state"
)
_OF_WINDOW = (  # the events of the window of a run
    "runs AS o CROSS JOIN window_events AS w ON w.window_seq = o.window_seq"
    " CROSS JOIN events AS e ON e.seq = w.event_seq WHERE o.seq = ? AND"
)
_UNENDED = (
    "(EXISTS (SELECT 1 FROM runs AS r WHERE r.event_seq = e.seq"
    f" AND r.state IN {UNFINISHED_STATES}) OR {_IN_WINDOW} = 'open')"
    f" OR EXISTS (SELECT 1 FROM {_WINDOWED} AND r.state IN {UNFINISHED_STATES}))"
)
_FAILURE = (  # a skipped run counts as succeeded: there was nothing to do
    "(SELECT json_array(flow, state, error) FROM ("
    "SELECT r.seq, r.flow, r.state, r.error FROM runs AS r WHERE r.event_seq = e.seq"
    f" UNION SELECT r.seq, r.flow, r.state, r.error FROM {_WINDOWED})"
    " WHERE state NOT IN ('succeeded', 'skipped') ORDER BY seq LIMIT 1)"
)

_IS_REFUSED = (  # also of an event that a window let go without a run: not everything is done
    "(EXISTS (SELECT 1 FROM runs AS r WHERE r.event_seq = e.seq AND r.refused IS NOT NULL)"
    f" OR EXISTS (SELECT 1 FROM {_WINDOWED} AND r.refused IS NOT NULL)"
    f" OR {_IN_WINDOW} IN ('expired', 'dropped'))"
    " OR EXISTS (SELECT 1 FROM decisions AS d CROSS JOIN json_each(d.items) AS made"
    " WHERE d.event_seq = e.seq AND made.value ->> 'reason' = 'expired'"
    f" AND NOT {_IN_WINDOW} IS NOT NULL AND w.id = made.value ->> '$.facts.window')))"
)


class WorkReads(SqliteReader):
    """What the dispatcher and the way in read to go on."""

    async def positions(self, trigger: str) -> dict[str, str]:
        """Return the stored positions of a trigger."""

        def query(connection: apsw.Connection) -> dict[str, str]:
            found: dict[str, str] = orjson.loads(
                connection.execute(_SQL["positions"], (trigger,)).get
            )
            return found

        return await self.read(query)

    async def queued(
        self, flow: str, after: int, limit: int, priority: int | None = None
    ) -> list[Queued]:
        """Return queued runs of a flow, or of one class, in arrival order, `after` one."""
        text = queued_text(of_class=priority is not None)
        return await self._read_queued(text, (flow, after, _NO_END, limit, priority))

    async def queued_past(
        self,
        flow: str,
        after: int,
        limit: int,
        blocked: Mapping[str, Sequence[str]],
        priority: int | None = None,
    ) -> QueuedPage:
        """Return queued runs as `queued` does, but not those that keys block, given by rule."""
        is_blocked, keys = _blocked(blocked, first=6)
        passes = f"(r.token = 0 AND ({is_blocked})) IS NOT TRUE"
        text = queued_text(of_class=priority is not None, which=passes)

        def query(connection: apsw.Connection) -> QueuedPage:
            last = connection.execute(_SQL["last_arrival"]).get
            end = min(last, after + _STRETCH)
            values = (flow, after, end, limit, priority, *keys)
            runs = [queued_from(row) for row in read_all(connection, text, values)]
            is_full = len(runs) == limit
            return QueuedPage(runs, runs[-1].arrival if is_full else end, is_full or end < last)

        return await self.read(query)

    async def queued_for_key(
        self,
        flow: str,
        rule_id: str,
        key: str,
        limit: int,
        after: int = 0,
        priority: int | None = None,
    ) -> list[Queued]:
        """Return queued runs with this key by a rule in arrival order, `after` one."""
        if rule_id == ORDER_RULE:
            return await self._read_queued(QUEUED_IN_ORDER, (flow, key, after, limit))
        return await self._read_queued(QUEUED_AT_KEY, (flow, rule_id, key, after, priority, limit))

    async def events_of_runs(self, seqs: Sequence[int]) -> dict[int, Event]:
        """Return the events of runs, by the seq of the run."""
        text = (
            f"SELECT r.seq, {EVENT_COLUMNS} FROM json_each(?) AS given"
            " CROSS JOIN runs AS r ON r.seq = given.value JOIN events AS e ON e.seq = r.event_seq"
        )
        found: list[Any] = await self.read(
            lambda connection: connection.execute(text, (dump_list(seqs),)).fetchall()
        )
        return {seq: event_from(row) for seq, *row in found}

    async def due(
        self, before: datetime, limit: int, *, after: Queued | None = None
    ) -> list[Queued]:
        """Return scheduled, retrying and waiting runs due by `before`, the earliest due first."""
        last = (-_NO_END, 0)
        if after is not None:
            assert after.due_at is not None  # it was returned here
            last = micros(after.due_at), after.seq
        return await self._read_queued(DUE, (micros(before), *last, limit))

    async def _read_queued(self, text: str, values: tuple[Any, ...]) -> list[Queued]:
        return await self.read(
            lambda connection: [queued_from(row) for row in read_all(connection, text, values)]
        )

    async def starts(self) -> list[Start]:
        """Return the starts that throttles count, in their order; some may count no more."""
        return await self.read(starts.read)

    async def next_due_at(self, after: datetime | None = None) -> datetime | None:
        """Return when the next scheduled, retrying or waiting run is due, `after` an instant."""
        values = (-1 if after is None else micros(after),)
        found = await self.read(
            lambda connection: connection.execute(_SQL["next_due_at"], values).get
        )
        return None if found is None else instant(found)

    async def last_recorded_at(self) -> datetime | None:
        """Return the latest instant among the newest event and runs; None in an empty journal."""
        found = await self.read(lambda connection: connection.execute(_SQL["last_recorded_at"]).get)
        return instant(found) if found else None

    async def orphans(self, flows: Sequence[str]) -> dict[str, int]:
        """Count unfinished runs of flows that are not in `flows`."""
        known = (dump_list(flows),)
        found = await self.read(lambda connection: connection.execute(_SQL["orphans"], known).get)
        return dict(orjson.loads(found))

    async def due_actions(
        self,
        after_seq: int,
        limit: int,
        *,
        of_run: int | None = None,
        accepted_before: datetime | None = None,
    ) -> list[EndedEvent]:
        """Return events whose after-run action is due, in order of arrival."""
        events = "events AS e WHERE"
        until = 2**62 if accepted_before is None else micros(accepted_before)
        bindings: tuple[int, ...] = (after_seq, until, limit)
        if of_run is not None:
            events, bindings = _OF_WINDOW, (of_run, *bindings)
        return await self.read(
            lambda connection: [
                _ended_event(row)
                for row in connection.execute(
                    f"SELECT {EVENT_COLUMNS}, {_FAILURE}, {_IS_REFUSED} FROM {events}"
                    f" e.after_run_action = 0 AND e.seq > ? AND e.accepted_at < ?"
                    f" AND NOT {_UNENDED}"
                    " ORDER BY e.seq LIMIT ?",
                    bindings,
                )
            ]
        )

    async def event_ended(self, event_seq: int) -> EndedEvent | None:
        """Return the event if its after-run action is due now, else None."""
        row = await self.read(
            lambda connection: connection.execute(
                f"SELECT {EVENT_COLUMNS}, {_FAILURE}, {_IS_REFUSED} FROM events AS e"
                f" WHERE e.seq = ? AND e.after_run_action = 0 AND NOT {_UNENDED}",
                (event_seq,),
            ).fetchone()
        )
        return None if row is None else _ended_event(row)


def _blocked(keys: Mapping[str, Sequence[str]], first: int) -> tuple[str, list[str]]:
    """Return the condition that one of these keys, by rule, blocks a run, and its values.

    The `first` of its values has this number.
    """
    terms, values = ["FALSE"], list[str]()

    def given(value: str) -> str:
        values.append(value)
        return f"?{first + len(values) - 1}"

    for rule_id, texts in keys.items():
        if rule_id == ORDER_RULE:
            listed = given(dump_list(texts))
            terms.append(f"r.order_key IN (SELECT value FROM json_each({listed}))")
        elif len(texts) <= _MOST_SEARCHED:
            for text in texts:
                searched = given(dump({rule_id: text})[1:-1])
                terms.append(f"r.order_key IS NULL AND instr(r.keys, {searched})")
        elif '"' not in rule_id:  # a path of JSON cannot name it
            path, listed = given(f'$."{rule_id}"'), given(dump_list(texts))
            terms.append(
                f"r.order_key IS NULL AND r.keys ->> {path} IN"
                f" (SELECT value FROM json_each({listed}))"
            )
    return " OR ".join(terms), values


def _ended_event(row: Sequence[Any]) -> EndedEvent:
    *event, failure, is_refused = row
    return EndedEvent(row[0], event_from(event), failure_from(failure), bool(is_refused))
