"""Appends events with their runs, decisions and positions.

Guarantees that a delivery is stored once within the dedupe window, even when it comes twice in one
batch, and that seqs only rise. Past a bound, new events are refused, with nothing of them written.
Not here: what the conditions of a flow decide (`conditions`), and what happens to runs later
(`apply`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import apsw

from turnout.service.domain.decisions import Reason
from turnout.service.domain.errors import Overloaded, PositionsMoved, QueueFull
from turnout.service.domain.event import Event
from turnout.service.domain.run import RunState, Start
from turnout.service.journal.records import Appended, Decision, Entry, NewRun

from . import dedupe, events, run_keys, runs, starts
from .alerts import FailureCounts
from .bounds import Bounds
from .conditions import Conditions
from .counters import RunCounters
from .decisions import REPEATS_KEPT, add_decisions, pack_decisions
from .dedupe import DeliveryRow, First
from .events import AppendJob, ColumnRows, EventRow, repeated_decision
from .older_runs import OlderRuns
from .positions import Moves
from .skip import store_refusal
from .statements import load
from .values import dump_list
from .waits import wake
from .windows import Windows

_SQL = load("append")
_UNMATCH = load("windows")["unmatch"]
_FIRST_RUNS, _LAST_SEQS = _SQL["first_runs"], _SQL["last_seqs"]
_NOTE_ARRIVAL = _SQL["note_arrival"]


class Rows:
    """The rows of a batch of appends, as flat lists of values for the bulk statements."""

    __slots__ = (
        "awaited", "classes", "deliveries", "events", "keys", "known", "repeated", "runs", "starts",
        "windowed",
    )  # fmt: skip

    def __init__(self, known: dict[bytes, First]) -> None:
        self.known = known
        self.events: list[Any] = []
        self.runs: list[Any] = []
        self.windowed: list[Any] = []
        self.keys: list[Any] = []
        self.classes: dict[tuple[str, str], int | None] = {}
        self.starts: list[Start] = []
        self.deliveries: list[Any] = []
        self.awaited: list[tuple[int, int, Sequence[str]]] = []
        self.repeated: list[tuple[AppendJob, Entry, Appended]] = []

    def clear(self) -> None:
        """Forget the rows that were inserted."""
        some: list[Any]
        for some in (
            self.events, self.runs, self.windowed, self.keys, self.starts, self.deliveries,
            self.awaited,
        ):  # fmt: skip
            some.clear()

    def forget(self, job: AppendJob, last_event: int) -> None:
        """Forget a job of which nothing is stored; `last_event` was stored before it."""
        self.clear()
        self.classes.clear()
        self.repeated = [each for each in self.repeated if each[0] is not job]
        for identity in job.identities:
            if identity is not None and self.known.get(identity[0], _BEFORE)[0] > last_event:
                del self.known[identity[0]]


_BEFORE: First = (0, b"", None)


class Space(Protocol):
    """Tells why there is no space for new events, None while there is."""

    def check(self) -> Overloaded | None: ...  # noqa: D102


class Intake:
    """Appends entries inside the transaction the writer opened."""

    def __init__(
        self, connection: apsw.Connection, disk_space: Space, *, max_unfinished_runs: int
    ) -> None:
        self._connection = connection
        self._disk_space = disk_space
        self._bounds = Bounds(connection, max_unfinished_runs)
        self.conditions = Conditions(connection, self._bounds)
        self.windows = Windows(connection, self)
        self.failures = FailureCounts(connection)
        self.last_event, self.last_run = _last_seqs(connection)

    def append(self, jobs: Sequence[AppendJob], counters: RunCounters) -> None:
        """Write the entries and positions of all jobs with three or four statements.

        A job with conditions, or with runs to cancel, is written by itself, in its turn.
        """
        rows = Rows(dedupe.known(self._connection, jobs))
        self.windows.known.begin()
        self._bounds.begin(jobs[0].at, counters.unfinished, self.last_run)
        no_space = self._disk_space.check()
        moves: Moves | None = None
        for job in jobs:
            if job.entries:
                job.error = no_space or self._too_many(job, counters)
            if job.positions and moves is None:
                moves = Moves(self._connection, [(each.trigger, each.positions) for each in jobs])
            if job.error is None and job.is_decided:
                self._append_decided(rows, job, moves, counters)
            elif job.error is None:
                if moves is not None and job.positions:
                    job.error = moves.add(job.trigger, job.positions)
                if job.error is None:
                    job.result = self._take_all(rows, job, counters)
        self._insert(rows)
        if rows.repeated:
            self._add_repeated(rows)
        if moves is not None:
            moves.write()

    def _append_decided(
        self, rows: Rows, job: AppendJob, moves: Moves | None, counters: RunCounters
    ) -> None:
        """Append a job whose runs are decided one by one; nothing of it if a queue is full."""
        self.insert(rows)
        last_event, part = self.last_event, counters.child()
        self._bounds.begin_delivery()
        execute = self._connection.execute
        execute("SAVEPOINT decided")
        try:
            job.result = self._take_all(rows, job, part)
            self.insert(rows)
            moved = None
            if moves is not None and job.positions:
                moved = moves.add(job.trigger, job.positions)
            if moved is not None:
                raise moved
        except (QueueFull, PositionsMoved) as error:
            execute("ROLLBACK TO decided")
            self._bounds.take_back_delivery()
            self.windows.known.forget()
            rows.forget(job, last_event)
            job.error = error
        else:
            counters.add(part)
        execute("RELEASE decided")

    def insert(self, rows: Rows) -> None:
        """Insert the rows so far, so that the next run is decided with them in the tables."""
        self._insert(rows)
        rows.clear()

    def _insert(self, rows: Rows) -> None:
        connection = self._connection
        events.INSERT.run(connection, rows.events)
        runs.INSERT.run(connection, rows.runs)
        if rows.windowed:
            runs.INSERT_WINDOWED.run(connection, rows.windowed)
        if self.windows.known.in_use:
            self.windows.known.flush()
        if rows.keys:
            run_keys.INSERT.run(connection, rows.keys)
        if rows.starts:
            starts.add(connection, rows.starts)
        if rows.deliveries:
            dedupe.INSERT.run(connection, rows.deliveries)
        for at, seq, topics in rows.awaited:
            wake(connection, topics, at, event_seq=seq)

    def _add_repeated(self, rows: Rows) -> None:
        """Store the decisions about events that were delivered before."""
        for job, entry, appended in rows.repeated:
            if not appended.runs:
                appended.runs = self._first_runs(appended.event_seq)
            made = repeated_decision(entry.event, conflict=appended.conflict)
            add_decisions(self._connection, appended.event_seq, (made,), job.at, most=REPEATS_KEPT)

    def _take_all(self, rows: Rows, job: AppendJob, counters: RunCounters) -> list[Appended]:
        """Add the rows of a job's entries, or answer for events that were delivered before."""
        self.windows.ends.before = self.last_event
        taken = []
        for entry, event, identity in zip(job.entries, job.events, job.identities, strict=True):
            if identity is not None and identity[0] in rows.known:
                appended = dedupe.repeated(entry, identity[1], rows.known[identity[0]])
                rows.repeated.append((job, entry, appended))
                taken.append(appended)
                continue
            if entry.columns is not None:
                taken.append(self._take_columns(rows, entry, event, job.at, counters))
                continue
            self.last_event += 1
            seq = self.last_event
            rows.events.append(seq)
            rows.events += event
            if entry.topics:
                rows.awaited.append((job.at, seq, entry.topics))
            appended = Appended(event_seq=seq, event=entry.event.id)
            if entry.cancels:
                self._cancel(rows, entry, appended, job.at, counters)
            if entry.runs:
                appended.runs = self.add_runs(
                    rows, entry.runs, appended, job.at, counters, job.caller
                )
            if entry.members:
                self._offer(rows, entry, event, appended, job.at, counters)
            if identity is not None:
                rows.deliveries += DeliveryRow(seq, *identity, job.at, job.expires_at)
                rows.known[identity[0]] = (seq, identity[1], appended.runs)
            taken.append(appended)
        return taken

    def _take_columns(
        self, rows: Rows, entry: Entry, written: ColumnRows, at: int, counters: RunCounters
    ) -> Appended:
        """Insert events that are columns, and offer them to windows: what they join are ranges."""
        seqs = range(self.last_event + 1, self.last_event + 1 + entry.count)
        self.last_event = seqs[-1]
        events.INSERT_COLUMNS.run(self._connection, written.numbered(seqs), written.shared)
        appended = Appended(event_seq=seqs[0], event=entry.event.id)
        assert entry.columns is not None
        sizes = list(map(len, entry.columns.bodies))
        for member in entry.members:
            ignored = self.windows.offer_all(rows, member, seqs, sizes, appended, at, counters)
            for seq, decided in ignored:
                appended.decided = (*appended.decided, *decided)
                add_decisions(self._connection, seq, decided, at)
                self._connection.execute(_UNMATCH, (dump_list([seq]),))
        return appended

    def _offer(
        self,
        rows: Rows,
        entry: Entry,
        event: tuple[Any, ...],
        appended: Appended,
        at: int,
        counters: RunCounters,
    ) -> None:
        """Offer an event, whose row is the last one, to the windows of flows."""
        size, first, decided = len(entry.event.body), appended.event_seq, list[Decision]()
        joined = False
        for member in entry.members:
            ignored = self.windows.offer(rows, member, first, size, appended, at, counters)
            joined = joined or ignored is None
            decided += ignored or ()
        if joined and not decided:
            return
        appended.decided = (*appended.decided, *decided)
        is_unmatched = not joined and not entry.runs
        width = len(EventRow._fields) + 1
        if rows.events and rows.events[-width] == first:  # it is not inserted yet
            made = pack_decisions((*entry.decisions, *decided), at)
            unmatched = (1 if entry.awaited is None else 2) if is_unmatched else None
            decided_row = EventRow(*event)._replace(decisions=made, unmatched=unmatched)
            rows.events[-width + 1 :] = decided_row
            return
        self.insert(rows)
        add_decisions(self._connection, first, decided, at)
        if is_unmatched:
            self._connection.execute(_UNMATCH, (dump_list([first]),))

    def add_event(self, rows: Rows, event: Event, at: int) -> int:
        """Add the row of an event that turnout makes itself; returns its seq."""
        self.last_event += 1
        rows.events.append(self.last_event)
        rows.events += EventRow(*events.event_row(Entry(event), at))._replace(unmatched=None)
        return self.last_event

    def add_runs(
        self,
        rows: Rows,
        new: Iterable[NewRun],
        appended: Appended,
        at: int,
        counters: RunCounters,
        caller: int | None = None,
    ) -> tuple[str, ...]:
        """Give an event's runs their seq, count them, and add their rows; returns their ids.

        What conditions decide is noted in `appended`; `caller` is the run that awaits a run. Raises
        `QueueFull`.
        """
        ids = []
        for run in new:
            if run.conditions is not None and run.state is not RunState.FAILED:
                ids.append(self._add_decided(rows, run, appended, at, counters, caller))
                continue
            self._add_run(rows, run, appended.event_seq, at, counters)
            ids.append(run.id)
        return tuple(ids)

    def replay(
        self, event_seq: int, new: Iterable[NewRun], at: int, counters: RunCounters
    ) -> Appended:
        """Append new runs of a stored event."""
        rows, appended = Rows({}), Appended(event_seq=event_seq, event="")
        appended.runs = self.add_runs(rows, new, appended, at, counters)
        self._insert(rows)
        return appended

    def next_arrival(self) -> int:
        """Return the number of an arrival after all others, for a run that has a seq already."""
        self.last_run += 1
        self._connection.execute(_NOTE_ARRIVAL, (self.last_run,))
        return self.last_run

    def _class_of_head(self, rows: Rows, run: NewRun, order_key: str) -> int | None:
        """Return the class of the unfinished runs of an ordering key, else the run's own.

        So an urgent run does not wait behind a head that gets fewer turns than it, out of sight.
        """
        known = rows.classes.get((run.flow, order_key))
        if known is None:
            known = run_keys.class_of_key(self._connection, run.flow, order_key) or run.priority
            rows.classes[run.flow, order_key] = known
        return known

    def _add_run(
        self, rows: Rows, run: NewRun, event_seq: int, at: int, counters: RunCounters
    ) -> None:
        self.last_run += 1
        run.seq = self.last_run
        if run.order_key is not None and run.has_class:
            run.priority = self._class_of_head(rows, run, run.order_key)
        row = runs.run_row(run, event_seq, at)
        if run.window_seq is None:
            rows.runs += row
        else:
            rows.windowed += (*row, run.window_seq)
        counters.move(None, row.state)
        if row.dead:
            counters.add_dead_letters(run.flow)
            self.failures.failed(run.flow, run.error, run.id, at)
        elif run.keys is not None:
            run_keys.add_rows(rows.keys, run.flow, run.keys, run.seq)
        if run.starts:
            rows.starts += run.starts

    # ---------------------------------------------------------------- conditions

    def _add_decided(
        self,
        rows: Rows,
        run: NewRun,
        appended: Appended,
        at: int,
        counters: RunCounters,
        caller: int | None,
    ) -> str:
        """Add a run that its conditions let pass, and end older ones for it; else a skipped one.

        Returns the id of the run that the event has now: the first one, if `unique` refuses it.
        """
        self.insert(rows)
        verdict = self.conditions.decide(run, at, caller=caller)
        if verdict.refused is not None:
            self._add_refused(rows, run, verdict.refused, appended, at)
            is_first = verdict.refused.reason is Reason.UNIQUE
            return str(verdict.refused.facts["other"]) if is_first else run.id
        if verdict.replaces or verdict.outdates:
            OlderRuns(self._connection, counters, appended, at).end_for(run, verdict)
            rows.classes.clear()  # the head of a key may be another one now
        self._add_run(rows, run, appended.event_seq, at, counters)
        self.insert(rows)
        self.conditions.accepted(run, at)
        return run.id

    def _add_refused(
        self, rows: Rows, run: NewRun, refused: Decision, appended: Appended, at: int
    ) -> None:
        """Store a run that is refused as skipped, with the decision."""
        self.last_run += 1
        run.seq = self.last_run
        row = runs.refused_row(run, appended.event_seq, at)
        if run.window_seq is None:
            rows.runs += row
        else:
            rows.windowed += (*row, run.window_seq)
        self.insert(rows)
        store_refusal(self._connection, run.seq, run.id, appended.event_seq, refused, at)
        appended.refused = {**appended.refused, run.id: refused}
        appended.decided = (*appended.decided, refused)

    def _cancel(
        self, rows: Rows, entry: Entry, appended: Appended, at: int, counters: RunCounters
    ) -> None:
        """Cancel the earlier runs that an event cancels."""
        self.insert(rows)
        older = OlderRuns(self._connection, counters, appended, at)
        older.cancel_by(entry.event, entry.cancels)
        rows.classes.clear()

    def _first_runs(self, event_seq: int) -> tuple[str, ...]:
        found = self._connection.execute(_FIRST_RUNS, (event_seq,))
        return tuple(row[0] for row in found)

    def _too_many(self, job: AppendJob, counters: RunCounters) -> Overloaded | None:
        if counters.unfinished < self._bounds.max_unfinished:
            return None
        if not any(entry.runs or entry.members for entry in job.entries):
            return None
        return self._bounds.too_many(job.at, counters.unfinished, self.last_run)


def _last_seqs(connection: apsw.Connection) -> tuple[int, int]:
    """Return the highest seqs ever given to an event and a run, the pruned ones included."""
    event, run = connection.execute(_LAST_SEQS).get
    return event, run
