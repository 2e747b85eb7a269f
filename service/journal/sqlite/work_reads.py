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

_IS_REFUSED = (  # also of an event whose window ended without a run: not everything is done
    "(EXISTS (SELECT 1 FROM runs AS r WHERE r.event_seq = e.seq AND r.refused IS NOT NULL)"
    f" OR EXISTS (SELECT 1 FROM {_WINDOWED} AND r.refused IS NOT NULL)"
    f" OR {_IN_WINDOW} IN ('expired', 'dropped')))"
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
        self, flow: str, after_seq: int, limit: int, priority: int | None = None
    ) -> list[Queued]:
        """Return queued runs of a flow, or of one class, in arrival order, after `after_seq`."""
        if priority is not None:
            return await self._queued(
                "r.state = 'queued' AND r.flow = ? AND r.priority = ? AND r.seq > ?"
                " ORDER BY r.seq LIMIT ?",
                (flow, priority, after_seq, limit),
                source="runs AS r INDEXED BY runs_by_priority",
            )
        return await self._queued(
            "r.state = 'queued' AND r.flow = ? AND r.seq > ? ORDER BY r.seq LIMIT ?",
            (flow, after_seq, limit),
        )

    async def queued_past(
        self,
        flow: str,
        after_seq: int,
        limit: int,
        blocked: Mapping[str, Sequence[str]],
        priority: int | None = None,
    ) -> QueuedPage:
        """Return queued runs as `queued` does, but not those that keys block, given by rule."""
        is_blocked, keys = _blocked(blocked)
        index, of_class = ("runs_by_state", "") if priority is None else (
            "runs_by_priority", f" AND r.priority = {priority:d}"
        )  # fmt: skip
        text = (
            f"SELECT json_array({QUEUED_COLUMNS}) AS item FROM runs AS r INDEXED BY {index}"
            f" WHERE r.state = 'queued' AND r.flow = ?{of_class} AND r.seq > ? AND r.seq <= ?"
            f" AND (r.token = 0 AND ({is_blocked})) IS NOT TRUE ORDER BY r.seq LIMIT ?"
        )

        def query(connection: apsw.Connection) -> QueuedPage:
            last = connection.execute(_SQL["last_run"]).get or 0
            end = min(last, after_seq + _STRETCH)
            values = (flow, after_seq, end, *keys, limit)
            runs = [queued_from(row) for row in read_all(connection, text, values)]
            is_full = len(runs) == limit
            return QueuedPage(runs, runs[-1].seq if is_full else end, is_full or end < last)

        return await self.read(query)

    async def queued_for_key(
        self,
        flow: str,
        rule_id: str,
        key: str,
        limit: int,
        after_seq: int = 0,
        priority: int | None = None,
    ) -> list[Queued]:
        """Return queued runs with this key by a rule in arrival order, after `after_seq`."""
        if rule_id == ORDER_RULE:
            return await self._queued(
                "r.state = 'queued' AND r.flow = ? AND r.order_key = ? AND r.seq > ?"
                " ORDER BY r.seq LIMIT ?",
                (flow, key, after_seq, limit),
            )
        return await self._queued(
            "k.flow = ? AND k.place = ? AND k.key = ? AND k.run_seq > ? AND +r.state = 'queued'"
            " AND (?5 IS NULL OR coalesce(+r.priority, 2) = ?5) ORDER BY k.run_seq LIMIT ?6",
            (flow, rule_id, key, after_seq, priority, limit),
            source="run_keys AS k CROSS JOIN runs AS r ON r.seq = k.run_seq",
        )

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

    async def due(self, before: datetime, limit: int) -> list[Queued]:
        """Return scheduled, retrying and waiting runs due by `before`, the earliest due first."""
        return await self._queued(
            "(r.state = 'scheduled' OR r.state = 'retrying' OR r.state = 'waiting')"
            " AND r.due_at <= ? ORDER BY r.due_at, r.seq LIMIT ?",
            (micros(before), limit),
            source="runs AS r INDEXED BY runs_due",
        )

    async def _queued(
        self, where: str, values: tuple[Any, ...], source: str = "runs AS r"
    ) -> list[Queued]:
        text = f"SELECT json_array({QUEUED_COLUMNS}) AS item FROM {source} WHERE {where}"
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


def _blocked(keys: Mapping[str, Sequence[str]]) -> tuple[str, list[str]]:
    """Return the condition that one of these keys, by rule, blocks a run, and its values."""
    terms, values = ["FALSE"], []
    for rule_id, texts in keys.items():
        if rule_id == ORDER_RULE:
            terms.append("r.order_key IN (SELECT value FROM json_each(?))")
            values.append(dump_list(texts))
        elif len(texts) <= _MOST_SEARCHED:
            terms += ["r.order_key IS NULL AND instr(r.keys, ?)"] * len(texts)
            values += [dump({rule_id: text})[1:-1] for text in texts]
        elif '"' not in rule_id:  # a path of JSON cannot name it
            terms.append("r.order_key IS NULL AND r.keys ->> ? IN (SELECT value FROM json_each(?))")
            values += [f'$."{rule_id}"', dump_list(texts)]
    return " OR ".join(terms), values


def _ended_event(row: Sequence[Any]) -> EndedEvent:
    *event, failure, is_refused = row
    return EndedEvent(row[0], event_from(event), failure_from(failure), bool(is_refused))
