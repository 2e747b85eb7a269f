"""Appends events with their runs, decisions and positions.

Guarantees that a delivery is stored once within the dedupe window, even when it comes twice in one
batch, and that seqs only rise. Past a bound, new events are refused before anything is written.
What happens to runs later is written by `apply.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import apsw

from turnout.service.domain.errors import Overloaded
from turnout.service.journal.records import Appended, Entry, NewRun

from . import dedupe, events, run_keys, runs
from .counters import RunCounters
from .decisions import REPEATS_KEPT, add_decisions
from .dedupe import DeliveryRow, First
from .disk_space import DiskSpace
from .events import AppendJob, EventRow
from .positions import Moves
from .statements import load
from .waits import wake

_SQL = load("append")
_FIRST_RUNS, _LAST_SEQS = _SQL["first_runs"], _SQL["last_seqs"]


class _Rows:
    """The rows of a batch of appends, as flat lists of values for the bulk statements."""

    __slots__ = ("awaited", "deliveries", "events", "keys", "known", "repeated", "runs")

    def __init__(self, known: dict[bytes, First]) -> None:
        self.known = known
        self.events: list[Any] = []
        self.runs: list[Any] = []
        self.keys: list[Any] = []
        self.deliveries: list[Any] = []
        self.awaited: list[tuple[int, int, Sequence[str]]] = []
        self.repeated: list[tuple[AppendJob, Appended]] = []


class Intake:
    """Appends entries inside the transaction the writer opened."""

    def __init__(
        self, connection: apsw.Connection, disk_space: DiskSpace, *, max_unfinished_runs: int
    ) -> None:
        self._connection = connection
        self._disk_space = disk_space
        self._max_unfinished = max_unfinished_runs
        self.last_event, self.last_run = _last_seqs(connection)

    def append(self, jobs: Sequence[AppendJob], counters: RunCounters) -> None:
        """Write the entries and positions of all jobs with three or four statements."""
        rows = _Rows(dedupe.known(self._connection, jobs))
        no_space = self._disk_space.check()
        moves: Moves | None = None
        for job in jobs:
            if job.entries:
                job.error = no_space or self._too_many(job, counters)
            if job.positions and job.error is None:
                moves = moves or Moves(
                    self._connection, [(each.trigger, each.positions) for each in jobs]
                )
                job.error = moves.add(job.trigger, job.positions)
            if job.error is None:
                job.result = [
                    self._take(rows, job, *parts, counters)
                    for parts in zip(job.entries, job.events, job.identities, strict=True)
                ]
        connection = self._connection
        events.INSERT.run(connection, rows.events)
        self.insert_runs(rows.runs, rows.keys)
        if rows.deliveries:
            dedupe.INSERT.run(connection, rows.deliveries)
        for at, seq, topics in rows.awaited:
            wake(connection, topics, at, event_seq=seq)
        for job, appended in rows.repeated:
            if not appended.runs:
                appended.runs = self._first_runs(appended.event_seq)
            made = job.repeated(appended.conflict)
            add_decisions(connection, appended.event_seq, (made,), job.at, kept=REPEATS_KEPT)
        if moves is not None:
            moves.write()

    def _take(
        self,
        rows: _Rows,
        job: AppendJob,
        entry: Entry,
        event: EventRow,
        identity: tuple[bytes, bytes] | None,
        counters: RunCounters,
    ) -> Appended:
        """Add an entry's rows, or answer for an event that was delivered before."""
        if identity is not None:
            first = rows.known.get(identity[0])
            if first is not None:
                appended = dedupe.repeated(entry, identity[1], first)
                rows.repeated.append((job, appended))
                return appended
        self.last_event += 1
        seq = self.last_event
        rows.events.append(seq)
        rows.events += event
        if entry.topics:
            rows.awaited.append((job.at, seq, entry.topics))
        run_ids = self.add_runs(rows.runs, rows.keys, entry.runs, seq, job.at, counters)
        if identity is not None:
            rows.deliveries += DeliveryRow(seq, *identity, job.at)
            rows.known[identity[0]] = (seq, identity[1], run_ids)
        return Appended(event_seq=seq, event=entry.event.id, runs=run_ids)

    def add_runs(
        self,
        values: list[Any],
        keys: list[Any],
        new: Iterable[NewRun],
        event_seq: int,
        at: int,
        counters: RunCounters,
    ) -> tuple[str, ...]:
        """Give runs their seq, count them, and add their rows to `values`; returns their ids.

        The rows of their keys are added to `keys`.
        """
        ids = []
        for run in new:
            self.last_run += 1
            run.seq = self.last_run
            row = runs.run_row(run, event_seq, at)
            values += row
            counters.move(None, row.state)
            if row.dead:
                counters.add_dead_letters(run.flow)
            elif run.keys is not None:
                run_keys.add_rows(keys, run.flow, run.keys, run.seq)
            ids.append(run.id)
        return tuple(ids)

    def insert_runs(self, values: list[Any], keys: list[Any]) -> None:
        """Insert the rows that `add_runs` added."""
        runs.INSERT.run(self._connection, values)
        if keys:
            run_keys.INSERT.run(self._connection, keys)

    def _first_runs(self, event_seq: int) -> tuple[str, ...]:
        found = self._connection.execute(_FIRST_RUNS, (event_seq,))
        return tuple(row[0] for row in found)

    def _too_many(self, job: AppendJob, counters: RunCounters) -> Overloaded | None:
        if counters.unfinished < self._max_unfinished:
            return None
        if not any(entry.runs for entry in job.entries):
            return None
        return Overloaded(f"{counters.unfinished} runs are unfinished, and no more are taken")


def _last_seqs(connection: apsw.Connection) -> tuple[int, int]:
    """Return the highest seqs ever given to an event and a run, the pruned ones included."""
    event, run = connection.execute(_LAST_SEQS).get
    return event, run
