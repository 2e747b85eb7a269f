"""Reads the journal on read-only connections in a few threads, so no read waits for a write.

A read sees whole transactions only, and works with the service running or down. Each read has its
own snapshot: two calls may see different moments.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any, TypeVar

import apsw
import orjson

from turnout.service.domain.breaker import StoredBreaker
from turnout.service.domain.errors import JournalError
from turnout.service.domain.event import Event
from turnout.service.domain.run import Run, RunState
from turnout.service.journal.records import (
    PAUSED,
    REGISTERED,
    ApprovalAnswer,
    Arrival,
    AttemptRecord,
    Cached,
    ChildEnd,
    DueCount,
    Filter,
    InLine,
    OpenApproval,
    OpenStep,
    StepRecord,
    StoredEvent,
    StoredOverride,
    StoredPause,
    StoredState,
    Wait,
)

from . import arrivals, breakers, cache, flow_state, lines
from .blobs import BlobStore
from .columns import selected
from .connection import damaged, open_beside_writer, open_for_reading, translate
from .dedupe import found_by_id
from .events import (
    EVENT_COLUMNS,
    LISTED_EVENT_COLUMNS,
    event_from,
    stored_event_from,
)
from .examine import CHECKS
from .files import journal_folder
from .filters import events_where, named_whole, runs_query
from .names import event_named, run_named
from .outcomes import AttemptRow, attempt_from
from .overrides import override_from
from .pauses import pause_from
from .runs import (
    LISTED_RUN_COLUMNS,
    RUN_COLUMNS,
    RUN_SOURCE,
    refused_from,
    run_from,
)
from .statements import load
from .steps import StepRow, step_from
from .values import dump_list, error_from, instant, instant_or_none, micros
from .window_reads import WindowReading

_THREADS = 4
_MOST_EVENTS = 1000
_MOST_BODY_BYTES = 16 * 2**20
"""How many events of one id, and how much of their bodies, are read at once."""
_MOST_OPEN_STEPS = 2000
_NEWEST = 50_000
_Value = TypeVar("_Value")

_SQL = load("reads")
_RATES = load("rates")
_WAITS = load("waits")
_STEP = selected(StepRow._fields, result="CASE WHEN ?3 IS NULL OR seq <= ?3 THEN result END")
_STEPS = f"SELECT {_STEP} FROM steps WHERE run_seq = ?1 AND task <> ?2 AND task <> ?4 ORDER BY seq"
_ATTEMPTS = f"SELECT {selected(AttemptRow._fields)} FROM attempts WHERE run_seq = ? ORDER BY seq"


async def open_reader(folder: Path) -> SqliteReader:
    """Open the journal of a data folder to read it; raises `SetupError` when there is none."""
    own = await asyncio.get_running_loop().run_in_executor(None, journal_folder, folder)
    reader = SqliteReader(own)
    try:
        await reader.read(lambda connection: None)
    except BaseException:
        await reader.close()
        raise
    return reader


class SqliteReader(WindowReading):
    """Implements `Reads`: what may be read with the service running or down."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._blobs = BlobStore(folder)
        self._local = threading.local()
        self._at_once: apsw.Connection | None = None
        self._connections: list[apsw.Connection] = []
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="turnout-reader")

    async def read(self, query: Callable[[apsw.Connection], _Value]) -> _Value:
        """Run `query` on a reading thread, inside one snapshot."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._read, query)

    def _read(self, query: Callable[[apsw.Connection], _Value]) -> _Value:
        connection: apsw.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = open_for_reading(self._folder)
            self._connections.append(connection)
        return _in_snapshot(connection, query)

    def read_at_once(self, query: Callable[[apsw.Connection], _Value]) -> _Value:
        """Run a query that takes microseconds on the loop itself, with a connection of its own."""
        if self._at_once is None:
            self._at_once = open_beside_writer(self._folder)
            self._connections.append(self._at_once)
        return _in_snapshot(self._at_once, query)

    async def close(self) -> None:
        """Release files."""
        self._threads.shutdown(wait=False)
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)
        while self._connections:
            self._connections.pop().close()

    # ---------------------------------------------------------------- runs

    async def run(self, run_id: str) -> Run | None:
        """Return one run by its id or a short form of it; raises `Ambiguous`."""

        def query(connection: apsw.Connection) -> Run | None:
            found = _run_by_id(connection, run_id)
            if found is None:
                whole = run_named(connection, run_id)
                found = None if whole is None else _run_by_id(connection, whole)
            return found

        return await self.read(query)

    async def child(self, run_id: str) -> ChildEnd | None:
        """Return the state and result of a child run; None when it has been pruned."""

        def query(connection: apsw.Connection) -> ChildEnd | None:
            row: Any = connection.execute(_SQL["child"], (run_id,)).fetchone()
            if row is None:
                return None
            state, result, error, returned, refused = row
            return ChildEnd(
                run_id, RunState(state), result, error_from(error), returned, refused_from(refused)
            )

        return await self.read(query)

    async def runs(self, which: Filter) -> list[Run]:
        """Return matching runs, newest first, without results of more than 4 KiB."""

        def query(connection: apsw.Connection) -> list[Run]:
            asked = runs_query(connection, named_whole(connection, which))
            return [run_from(row) for row in connection.execute(*asked)]

        return await self.read(query)

    async def steps(self, run_seq: int, *, at_most_bytes: int | None = None) -> list[StepRecord]:
        """Return a run's steps in the order they were first recorded, superseded ones too.

        With `at_most_bytes`, results are left out once those before them come to so many bytes.
        """

        def query(connection: apsw.Connection) -> list[StepRecord]:
            last = (
                None if at_most_bytes is None else _last_shown(connection, run_seq, at_most_bytes)
            )
            rows = connection.execute(_STEPS, (run_seq, REGISTERED, last, PAUSED))
            return [step_from(row) for row in rows]

        return await self.read(query)

    async def breakers(self) -> list[StoredBreaker]:
        """Return the breakers of dependencies as they last changed, by name."""
        return await self.read(breakers.read)

    async def attempts(self, run_seq: int) -> list[AttemptRecord]:
        """Return the recorded attempts of a run, in order; those before a retry come first."""
        return await self.read(
            lambda connection: [
                attempt_from(row) for row in connection.execute(_ATTEMPTS, (run_seq,))
            ]
        )

    # ---------------------------------------------------------------- waits

    async def waits(self, run_seq: int, key: str | None = None) -> list[Wait]:
        """Return a run's open waits, or only that of the step `key`."""
        rows: list[Any] = await self.read(
            lambda connection: connection.execute(_SQL["waits"], (run_seq, key)).fetchall()
        )
        return [
            Wait(key=key, topic=topic, woken=woken, latest=latest, answer=said and said.encode())
            for key, topic, woken, latest, said in rows
        ]

    async def places_in_line(self, runs: Sequence[InLine]) -> list[int]:
        """Return for each run its place among the queued ones of its line, from 1 to a bound."""
        return await self.read(lambda connection: lines.places_in_line(connection, runs))

    async def due_counts(self, now: datetime) -> list[DueCount]:
        """Return for each flow with unfinished runs how many are due, or will be."""
        return await self.read(lambda connection: lines.due_counts(connection, now))

    async def open_steps(self, run_seqs: Sequence[int]) -> list[OpenStep]:
        """Return the steps at which these runs wait, up to a bound for all of them."""
        asked = (dump_list(run_seqs), _MOST_OPEN_STEPS)
        found: str = await self.read(
            lambda connection: connection.execute(_SQL["open_steps"], asked).get
        )
        return [
            OpenStep(run_seq, key, task, state, origin, orjson.loads(note or "{}"))
            for run_seq, key, task, state, origin, note in orjson.loads(found)
        ]

    async def open_approvals(self, limit: int) -> list[OpenApproval]:
        """Return the approvals that wait for an answer, those asked first before others."""
        found: str = await self.read(
            lambda connection: connection.execute(_SQL["open_approvals"], (limit,)).get
        )
        return [
            OpenApproval(
                run_id=run_id, flow=flow, key=key, asked_at=instant(at),
                note=orjson.loads(note or "{}"),
            )
            for run_id, flow, key, at, note in orjson.loads(found)
        ]  # fmt: skip

    async def answers(self, run_seq: int) -> list[ApprovalAnswer]:
        """Return who has answered the approvals of a run, those of earlier attempts too."""
        rows: list[Any] = await self.read(
            lambda connection: connection.execute(_WAITS["answers"], (run_seq,)).fetchall()
        )
        return [
            ApprovalAnswer(key, instant(at), bool(approved), by, via)
            for key, at, approved, by, via in rows
        ]

    async def due_runs(self, limit: int) -> list[Run]:
        """Return the runs that wait for an instant, those that are due first before others."""
        source = "runs AS r INDEXED BY runs_due JOIN events AS e ON e.seq = r.event_seq"
        text = (
            f"SELECT {LISTED_RUN_COLUMNS} FROM {source} WHERE (r.state = 'scheduled'"
            " OR r.state = 'retrying' OR r.state = 'waiting') AND r.due_at IS NOT NULL"
            " ORDER BY r.due_at LIMIT ?"
        )
        return await self.read(
            lambda connection: [run_from(row) for row in connection.execute(text, (limit,))]
        )

    async def last_accepted(self) -> dict[str, datetime]:
        """Return when the last event of each trigger was accepted, of the newest 50,000 events."""
        rows: list[Any] = await self.read(
            lambda connection: connection.execute(_SQL["last_accepted"], (_NEWEST,)).fetchall()
        )
        return {trigger: instant(at) for trigger, at in rows}

    def flow_state(self, flow: str, key: str) -> StoredState | None:
        """Return at once what a flow keeps between runs under a key: a point read, on the loop."""
        return self.read_at_once(lambda connection: flow_state.read(connection, flow, key))

    async def flow_states(self, flow: str | None, limit: int) -> list[StoredState]:
        """Return what a flow, or every flow, keeps between runs."""
        return await self.read(lambda connection: flow_state.listed(connection, flow, limit))

    async def is_used(self, link: bytes) -> bool:
        """Return whether the approval link with this digest was used."""
        found = await self.read(lambda connection: connection.execute(_SQL["is_used"], (link,)).get)
        return found is not None

    async def awaited(
        self, name: str, run_seq: int, after_seq: int, limit: int, *, is_pattern: bool = False
    ) -> list[tuple[int, Event]]:
        """Return the first events after `after_seq` awaited under `name`, with their seq."""
        compare = "=" if not is_pattern else "GLOB"
        name = name if not is_pattern else name.replace("[", "[[]").replace("?", "[?]")
        return await self.read(
            lambda connection: [
                (row[0], event_from(row))
                for row in connection.execute(
                    f"SELECT {EVENT_COLUMNS} FROM events AS e INDEXED BY events_awaited"
                    f" WHERE e.awaited IS NOT NULL AND e.awaited {compare} ? AND e.seq > ?"
                    " AND e.accepted_at >= (SELECT queued_at FROM runs WHERE seq = ?)"
                    " ORDER BY e.seq LIMIT ?",
                    (name, after_seq, run_seq, limit),
                )
            ]
        )

    async def shapes(self) -> list[Sequence[str]]:
        """Return the distinct shapes of open waits for events."""
        rows: list[Any] = await self.read(
            lambda connection: connection.execute(_SQL["shapes"]).fetchall()
        )
        return [orjson.loads(row[0]) for row in rows]

    # ---------------------------------------------------------------- events

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

    async def typical_duration(self, flow: str, *, since: datetime) -> timedelta | None:
        """Return the median time from arrival to end of the flow's runs that have succeeded."""
        took = await self.read(
            lambda connection: arrivals.typical_microseconds(connection, flow, micros(since))
        )
        return None if took is None else timedelta(microseconds=took)

    # ---------------------------------------------------------------- the cache, pauses

    async def cached(self, key: bytes, *, now: datetime) -> Cached | None:
        """Return the cached result of a key, unless it has expired."""
        return await self.read(lambda connection: cache.find(connection, key, micros(now)))

    async def read_blob(self, name: str) -> bytes:
        """Return a large result; raises `JournalError` when it is gone or damaged."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._blobs.read, name)

    async def pauses(self, *, now: datetime) -> dict[str, StoredPause]:
        """Return the pauses that have not ended by `now`, by name."""
        rows: list[Any] = await self.read(
            lambda connection: connection.execute(_SQL["pauses"], (micros(now),)).fetchall()
        )
        return {row[0]: pause_from(row) for row in rows}

    async def accepted_by_key(
        self, flow: str, place: str, *, since: datetime, nth: int
    ) -> list[tuple[str, int, datetime | None]]:
        """Return how many runs a rate limit has accepted since then, the busiest key first."""
        rows: list[Any] = await self.read(
            lambda connection: connection.execute(
                _RATES["accepted_by_key"], (flow, place, micros(since), nth - 1)
            ).fetchall()
        )
        return [(key, count, instant_or_none(latest)) for key, count, latest in rows]

    async def queued_by_class(self, flows: Sequence[str]) -> dict[int, tuple[int, datetime]]:
        """Return how many runs of these flows are queued, by priority, and since when the first."""
        rows: list[Any] = await self.read(
            lambda connection: connection.execute(
                _SQL["queued_by_class"], (dump_list(flows),)
            ).fetchall()
        )
        return {level: (count, instant(oldest)) for level, count, oldest in rows}

    async def overrides(self, *, now: datetime) -> dict[str, StoredOverride]:
        """Return the limits that operators have set and that have not ended by `now`, by name."""
        rows: list[Any] = await self.read(
            lambda connection: connection.execute(_SQL["overrides"], (micros(now),)).fetchall()
        )
        return {row[0]: override_from(row) for row in rows}

    # ---------------------------------------------------------------- doctor

    async def examine(self) -> AsyncIterator[tuple[str, str | None]]:
        """Yield (check, problem or None) pairs for `turnout doctor`, as each check ends."""
        for name, check in CHECKS:
            try:
                problem = await self.read(check)
            except JournalError as error:
                problem = str(error)
            yield name, problem


def _last_shown(connection: apsw.Connection, run_seq: int, at_most_bytes: int) -> int:
    """Return the last step whose result fits a bound together with all before it."""
    last, left = 0, at_most_bytes
    lengths = connection.execute(_SQL["result_lengths"], (run_seq,))
    for seq, length in lengths:
        left -= length
        if left < 0:
            break
        last = seq
    return last


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


def _run_by_id(connection: apsw.Connection, run_id: str) -> Run | None:
    rows = connection.execute(f"SELECT {RUN_COLUMNS} FROM {RUN_SOURCE} WHERE r.id = ?", (run_id,))
    return next((run_from(row) for row in rows), None)


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


def _in_snapshot(connection: apsw.Connection, query: Callable[[apsw.Connection], _Value]) -> _Value:
    try:
        connection.execute("BEGIN")
        try:
            return query(connection)
        finally:
            if connection.in_transaction:
                connection.execute("COMMIT")
    except apsw.Error as error:
        raise translate(error, connection) from error
    except UnicodeDecodeError as error:  # stored text that is not UTF-8
        raise JournalError(damaged(connection.filename, error.reason)) from error
