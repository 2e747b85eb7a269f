"""The end of a window: the run that it fires, or the decisions that its members get.

Each method writes inside the transaction the writer opened, and notes in the answer of the write
what it has done. Not here: when a window ends (`windows`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import apsw
import orjson

from turnout.service.domain.decisions import Reason
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.run import RunState
from turnout.service.domain.windows.absent import ABSENT
from turnout.service.domain.windows.firing import Firing
from turnout.service.journal.records import (
    NOTHING,
    Appended,
    ClosedWindows,
    Decision,
    FiredRun,
    NewRun,
    Queued,
)

from .counters import RunCounters
from .decisions import add_decisions, pack_decisions
from .open_windows import KnownWindow, KnownWindows, MemberRow
from .runs import RUN_COLUMNS, RUN_SOURCE, run_from
from .statements import load
from .values import dump, dump_list, instant

_SQL = load("windows")
_RUN = f"SELECT {RUN_COLUMNS} FROM {RUN_SOURCE} WHERE r.seq = ?"


class Runs(Protocol):
    """Who stores events and runs: `append.Intake`."""

    def insert(self, rows: Any) -> None:
        """Insert the rows so far."""

    def add_runs(
        self, rows: Any, new: Iterable[NewRun], appended: Appended, at: int, counters: RunCounters
    ) -> tuple[str, ...]:
        """Add the rows of runs, as their conditions say; returns their ids."""

    def add_event(self, rows: Any, event: Event, at: int) -> int:
        """Add the row of an event that turnout makes itself; returns its seq."""


@dataclass(slots=True)
class Change:
    """What one write does to windows: where rows go, and the answer to its caller."""

    rows: Any
    at: int
    counters: RunCounters
    answer: Appended | ClosedWindows
    flow: Firing | None
    on_timeout: Firing | None = None
    prepared: Iterator[NewRun] = field(default_factory=lambda: iter(()))
    ignored: list[Decision] = field(default_factory=list)
    joined: bool = False


class _Chosen(NamedTuple):
    """The first member of a window, and what is said of the one that a run takes its keys from."""

    event_seq: int
    order_key: str | None
    keys: str | None
    priority: int | None


class WindowEnds:
    """Makes the runs of windows, and leaves decisions with members that start none."""

    def __init__(self, connection: apsw.Connection, known: KnownWindows, runs: Runs) -> None:
        self._connection = connection
        self._known = known
        self._runs = runs
        self.before = 0  # the last event before those of the caller

    # ---------------------------------------------------------------- a run

    def fire(
        self, change: Change, window: KnownWindow, flow: str, firing: Firing | None, words: str
    ) -> None:
        """Make the run of a window: its conditions are decided now, and it is queued."""
        firing = firing or Firing()
        if not window.members:
            self._add_own_event(change, window)
        first, chosen = self._chosen(window)
        run = self._run_of(change, window, flow, firing, chosen)
        made = Appended(event_seq=first, event="")
        (run_id,) = self._runs.add_runs(change.rows, [run], made, change.at, change.counters)
        self._answer(change, window, run, run_id, made)
        if words:
            facts = {"run": run.id, "window": window.id, **key_fact(window.key)}
            told = Decision(flow, Reason.WINDOWED, words, facts)
            self.flush_all(change)
            add_decisions(self._connection, first, (told,), change.at)

    def _run_of(
        self, change: Change, window: KnownWindow, flow: str, firing: Firing, chosen: _Chosen
    ) -> NewRun:
        is_own = flow == window.flow
        is_whole = window.is_new and _first_and_last(window)[0].event_seq > self.before
        if is_own and is_whole:  # all its members came with this write: the caller has them
            prepared = next(change.prepared, None)
            if prepared is not None and prepared.state is RunState.RUNNING:
                prepared.window_seq = window.seq
                return prepared
        deque(change.prepared, maxlen=0)  # no later run of this write may start before this one
        return NewRun(
            id=self._scheduled(change, window) or mint_id(),
            flow=flow,
            state=RunState.QUEUED,
            order_key=chosen.order_key if is_own else None,
            keys=orjson.loads(chosen.keys) if is_own and chosen.keys is not None else None,
            priority=chosen.priority if is_own else None,
            conditions=firing.conditions,
            code_version=firing.code_version,
            window_seq=window.seq,
        )

    def _scheduled(self, change: Change, window: KnownWindow) -> str | None:
        """Delete the run that waited for this window; returns its id, under which it is queued."""
        if window.settings.kind != "debounce":
            return None
        if window.is_new:
            self._runs.insert(change.rows)
        found: Any = self._connection.execute(_SQL["scheduled_run"], (window.seq,)).fetchone()
        if found is None:
            return None
        self._connection.execute(_SQL["delete_run"], (found[0],))
        change.counters.move(RunState.SCHEDULED, None)
        return str(found[1])

    def _answer(
        self, change: Change, window: KnownWindow, run: NewRun, run_id: str, made: Appended
    ) -> None:
        """Note in the answer of the write what came of a run."""
        answer = change.answer
        answer.cancelled = (*answer.cancelled, *made.cancelled)
        answer.decided = (*answer.decided, *made.decided)
        answer.skipped = (*answer.skipped, *made.skipped)
        if run_id not in answer.runs:
            answer.runs = (*answer.runs, run_id)
        if made.refused:
            answer.refused = {**answer.refused, **made.refused}
            row: Any = self._connection.execute(_RUN, (run.seq,)).fetchone()
            answer.skipped = (*answer.skipped, run_from(row))
            return
        queued = Queued(
            seq=run.seq,
            arrival=run.seq,
            id=run.id,
            flow=run.flow,
            order_key=run.order_key,
            keys=run.keys,
            priority=run.priority,
            due_at=None,
            isolated=False,
            queued_at=instant(change.at),
        )
        is_prepared = run.state is RunState.RUNNING
        fired = FiredRun(
            queued=queued,
            window_seq=window.seq,
            prepared=run if is_prepared else None,
            events=window.events() if is_prepared else (),
        )
        answer.fired = (*answer.fired, fired)

    def _chosen(self, window: KnownWindow) -> tuple[int, _Chosen]:
        """Return the first event of a window, and the member that its run takes its keys from."""
        takes_last = window.settings.keep == "last"
        if window.is_new:
            first, last = _first_and_last(window)
            return first.event_seq, last if takes_last else first
        self._known.flush()
        first = self._member(window, "first_member")
        return first.event_seq, self._member(window, "last_member") if takes_last else first

    def _member(self, window: KnownWindow, which: str) -> _Chosen:
        row: Any = self._connection.execute(_SQL[which], (window.seq,)).fetchone()
        return _Chosen(*row)

    def _add_own_event(self, change: Change, window: KnownWindow) -> None:
        """Make the event of a window that fires because nothing came."""
        since = instant(window.opened_at).isoformat().replace("+00:00", "Z")
        event = Event(
            id=window.id,
            source="turnout",
            type=ABSENT,
            time=instant(change.at),
            datacontenttype="application/json",
            body=dump({"since": since}).encode(),
            trigger=window.settings.parts[0] if window.settings.parts else "",
            minted=True,
        )
        seq = self._runs.add_event(change.rows, event, change.at)
        window.positions += 1
        window.members += 1
        row = MemberRow(window.seq, window.positions, seq, 0, change.at, 0, None, None, None)
        self._known.joined(window, row)

    def schedule(self, change: Change, window: KnownWindow, event_seq: int) -> None:
        """Name the run that waits for a debounce to fire; the first event makes it."""
        answer = change.answer
        assert isinstance(answer, Appended) and change.flow is not None
        if window.is_new and window.positions == 1:
            run = NewRun(
                id=mint_id(),
                flow=window.flow,
                state=RunState.SCHEDULED,
                code_version=change.flow.code_version,
                window_seq=window.seq,
            )
            made = Appended(event_seq=event_seq, event="")
            self._runs.add_runs(change.rows, [run], made, change.at, change.counters)
            window.scheduled = run.id
        elif window.scheduled is None:
            found: Any = self._connection.execute(_SQL["scheduled_run"], (window.seq,)).fetchone()
            window.scheduled = None if found is None else found[1]
        if window.scheduled is not None:
            answer.runs = (*answer.runs, window.scheduled)

    def cancel_scheduled(self, change: Change, window: KnownWindow, by: str) -> None:
        """Cancel the run that waits for a window, if there is one."""
        found: Any = self._connection.execute(_SQL["scheduled_run"], (window.seq,)).fetchone()
        if found is None:
            return
        self._connection.execute(_SQL["cancel_run"], (found[0], change.at, by or None))
        change.counters.move(RunState.SCHEDULED, RunState.CANCELLED)
        row: Any = self._connection.execute(_RUN, (found[0],)).fetchone()
        change.answer.cancelled = (run_from(row),)

    # ---------------------------------------------------------------- no run

    def end_members(
        self,
        change: Change,
        window: KnownWindow,
        reason: Reason,
        words: str,
        facts: Mapping[str, str] = NOTHING,
    ) -> None:
        """Leave a decision with each member of a window that ends without a run."""
        self.flush_all(change)
        self.decide(change, window, reason, words, facts=facts)
        members: list[Any] = self._connection.execute(_SQL["members"], (window.seq,)).fetchall()
        self.unmatch([event for (event,) in members])

    def decide(
        self,
        change: Change,
        window: KnownWindow,
        reason: Reason,
        words: str,
        before: int | None = None,
        part: int | None = None,
        facts: Mapping[str, str] = NOTHING,
    ) -> None:
        """Store one decision with each of the members; they must be in the table."""
        named = {"rule": f"{window.settings.kind}(…)", "window": window.id, **facts}
        made = Decision(window.flow, reason, words, {**named, **key_fact(window.key)})
        text = pack_decisions((made,), change.at)
        self._connection.execute(_SQL["decide"], (window.seq, text, before, part))
        decided = (made,) * self._connection.changes()
        change.answer.decided = (*change.answer.decided, *decided)

    def unmatch(self, events: Sequence[int]) -> None:
        """Give events that nothing else has the age limit of an unmatched one."""
        self._connection.execute(_SQL["unmatch"], (dump_list(events),))

    def flush_all(self, change: Change) -> None:
        """Insert what is pending, so that statements find all events, runs and members."""
        self._runs.insert(change.rows)
        self._known.flush()


def _first_and_last(window: KnownWindow) -> tuple[_Chosen, _Chosen]:
    """Return the first member of a window that is new, and the last one."""
    ends = (window.joined[0], 0), (window.joined[-1], -1)
    first, last = (
        _Chosen(of[at], None, None, None)
        if isinstance(of, range)
        else _Chosen(of.event_seq, of.order_key, of.keys, of.priority)
        for of, at in ends
    )
    return first, last


def key_fact(key: str | None) -> dict[str, str]:
    """Return what a decision says of the key of a window."""
    return {} if not key else {"key": key}
