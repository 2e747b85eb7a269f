"""Reads the journal for people and for steps: runs, their steps and attempts, and the cache.

Not here: connections and threads (`reading`), events (`event_reads`), what runs wait for
(`wait_reads`), what operators have set (`steering_reads`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import apsw

from turnout.service.domain.errors import JournalError
from turnout.service.domain.run import Run, RunState
from turnout.service.journal.records import (
    AGENT,
    PAUSED,
    REGISTERED,
    AttemptRecord,
    Cached,
    ChildEnd,
    EndedRun,
    Filter,
    StepRecord,
    StoredArtefact,
    StoredState,
)

from . import artefacts, cache, flow_state
from .alert_reads import AlertReading
from .columns import selected
from .event_reads import EventReading
from .examine import CHECKS
from .files import journal_folder
from .filters import named_whole, runs_query
from .names import run_named
from .outcomes import AttemptRow, attempt_from
from .runs import (
    RUN_COLUMNS,
    RUN_SOURCE,
    ended_run,
    refused_from,
    run_from,
)
from .statements import load
from .steering_reads import SteeringReading
from .steps import StepRow, step_from
from .values import error_from, micros
from .wait_reads import WaitReading
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
_STEPS = f"SELECT {_STEP} FROM steps WHERE run_seq = ?1 AND task NOT IN (?2, ?4, ?5) ORDER BY seq"
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


class SqliteReader(EventReading, WaitReading, SteeringReading, WindowReading, AlertReading):
    """Implements `Reads`: what may be read with the service running or down."""

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
        """Return the state and result of a child run; None when the journal does not have it."""

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
            rows = connection.execute(_STEPS, (run_seq, REGISTERED, last, PAUSED, AGENT))
            return [step_from(row) for row in rows]

        return await self.read(query)

    async def attempts(self, run_seq: int) -> list[AttemptRecord]:
        """Return the recorded attempts of a run, in order; those before a retry come first."""
        return await self.read(
            lambda connection: [
                attempt_from(row) for row in connection.execute(_ATTEMPTS, (run_seq,))
            ]
        )

    def flow_state(self, flow: str, key: str) -> StoredState | None:
        """Return at once what a flow keeps between runs under a key: a point read, on the loop."""
        return self.read_at_once(lambda connection: flow_state.read(connection, flow, key))

    def history(self, flow: str, limit: int, *, at_most_bytes: int) -> list[EndedRun]:
        """Return at once the last ended runs of a flow: a few rows of an index, on the loop."""
        text, asked = _SQL["history"], (flow, limit, at_most_bytes)
        return self.read_at_once(
            lambda connection: [ended_run(row) for row in connection.execute(text, asked)]
        )

    async def flow_states(
        self, flow: str | None, limit: int, *, key: str | None = None
    ) -> list[StoredState]:
        """Return what a flow, or every flow, keeps between runs."""
        return await self.read(lambda connection: flow_state.listed(connection, flow, key, limit))

    async def count_states(self, flow: str, key: str | None) -> int:
        """Return how many values a flow keeps between runs, under a key or any."""
        return await self.read(lambda connection: flow_state.count(connection, flow, key))

    # ---------------------------------------------------------------- artefacts

    def artefact(self, run_seq: int, name: str) -> StoredArtefact | None:
        """Return at once the artefact last recorded under a name: a point read, in any thread."""
        return self.read_here(lambda connection: artefacts.named(connection, run_seq, name))

    async def artefacts(self, run_seq: int, limit: int) -> list[StoredArtefact]:
        """Return a run's artefacts in the order they were recorded, the last of each name."""
        return await self.read(lambda connection: artefacts.listed(connection, run_seq, limit))

    # ---------------------------------------------------------------- the cache

    async def count_cached(self, task: str | None) -> int:
        """Return how many results of a task, or of all, are cached."""
        return await self.read(lambda connection: cache.count(connection, task))

    async def cached(self, key: bytes, *, now: datetime) -> Cached | None:
        """Return the cached result of a key, unless it has expired."""
        return await self.read(lambda connection: cache.find(connection, key, micros(now)))

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


def _run_by_id(connection: apsw.Connection, run_id: str) -> Run | None:
    rows = connection.execute(f"SELECT {RUN_COLUMNS} FROM {RUN_SOURCE} WHERE r.id = ?", (run_id,))
    return next((run_from(row) for row in rows), None)
