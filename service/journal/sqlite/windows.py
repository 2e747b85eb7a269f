"""Windows: applies what a rule says to the windows of the journal, and makes their runs.

The rule of a window is asked inside the transaction that stores an event, in its turn, and again
at the deadline. What one transaction does to a window is kept in memory and written once: a window
that opens and fills in one append leaves no intermediate state. Not here: what a rule says
(`domain/windows`), and when a deadline has come (`intake/windows`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import apsw
import orjson

from turnout.service.domain.decisions import Reason
from turnout.service.domain.errors import NotFound
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.run import RunState
from turnout.service.domain.windows.firing import Firing
from turnout.service.domain.windows.rules import RULES
from turnout.service.domain.windows.window import (
    MOST_BYTES,
    MOST_MEMBERS,
    AskAgain,
    Close,
    Expire,
    Fire,
    Ignore,
    Join,
    Member,
    Open,
    OpenWindow,
    Postpone,
    Release,
    Rule,
    Step,
    WindowSettings,
)
from turnout.service.journal.records import (
    NOTHING,
    Appended,
    ClosedWindows,
    Decision,
    FiredRun,
    NewMember,
    NewRun,
    Queued,
    Told,
)

from .bulk import BulkStatement, insert
from .columns import overwritten
from .counters import RunCounters
from .decisions import add_decisions, pack_decisions
from .runs import RUN_COLUMNS, RUN_SOURCE, run_from
from .statements import load
from .values import dump, dump_list, instant, instant_or_none, micros, micros_or_none

_SQL = load("windows")
_RUN = f"SELECT {RUN_COLUMNS} FROM {RUN_SOURCE} WHERE r.seq = ?"

ABSENT = "turnout.absent"
"""The type of the event of a window that fires without a member."""


class _WindowRow(NamedTuple):
    """The columns of the table `windows` that the engine writes."""

    seq: int
    id: str
    flow: str
    key: str
    settings: str
    state: str
    opened_at: int
    due_at: int | None
    closed_at: int | None
    members: int
    bytes: int
    positions: int


class _MemberRow(NamedTuple):
    """The columns of the table `window_events` that are written when an event joins."""

    window_seq: int
    position: int
    event_seq: int
    part: int
    at: int
    bytes: int
    keys: str | None
    order_key: str | None
    priority: int | None


_FIXED = ("seq", "id", "flow", "key", "settings", "opened_at")
_WRITE = BulkStatement(
    f"INSERT INTO windows ({', '.join(_WindowRow._fields)}) {{rows}} ON CONFLICT (seq)"
    f" DO UPDATE SET {overwritten(_WindowRow._fields, _FIXED)}"
    ", remaining = iif(excluded.due_at IS NULL, remaining, NULL)",
    _WindowRow._fields,
)
_JOIN = insert("window_events", _MemberRow._fields)


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
class _Open:
    """An open window as this transaction has it.

    `is_new`: it was opened here, so that all its members are in `joined`. `scheduled` is the id of
    the run that waits for it, once it is known.
    """

    seq: int
    id: str
    flow: str
    key: str
    settings: WindowSettings
    opened_at: int
    due_at: int | None = None
    members: int = 0
    bytes: int = 0
    positions: int = 0
    state: str = "open"
    closed_at: int | None = None
    is_new: bool = False
    scheduled: str | None = None
    joined: list[_MemberRow] = field(default_factory=list)

    def row(self) -> _WindowRow:
        return _WindowRow(
            self.seq, self.id, self.flow, self.key, self.settings.to_json(), self.state,
            self.opened_at, self.due_at, self.closed_at, self.members, self.bytes, self.positions,
        )  # fmt: skip


class _Chosen(NamedTuple):
    """The first member of a window, and what is said of the one that a run takes its keys from."""

    event_seq: int
    order_key: str | None
    keys: str | None
    priority: int | None


@dataclass(slots=True)
class _Change:
    """What one write does to windows: where rows go, and the answer to its caller."""

    rows: Any
    at: int
    counters: RunCounters
    answer: Appended | ClosedWindows
    flow: Firing | None
    on_timeout: Firing | None = None
    prepared: NewRun | None = None
    ignored: list[Decision] = field(default_factory=list)
    joined: bool = False


class Windows:
    """The windows of the journal, inside the transaction the writer opened."""

    def __init__(self, connection: apsw.Connection, runs: Runs) -> None:
        self._connection = connection
        self._runs = runs
        self._last: int = connection.execute(_SQL["last_window"]).get
        self._open: dict[tuple[str, str], _Open | None] = {}
        self._changed: dict[int, _Open] = {}
        self._joined: list[Any] = []
        self.before = 0  # the last event before those of the caller

    @property
    def in_use(self) -> bool:
        """Whether this transaction knows of a window."""
        return bool(self._open or self._changed)

    def flush(self) -> None:
        """Write what has changed so far."""
        if self._changed:
            _WRITE.run(self._connection, [value for each in self._changed.values()
                                          for value in each.row()])  # fmt: skip
            self._changed.clear()
        if self._joined:
            _JOIN.run(self._connection, self._joined)
            self._joined.clear()

    def begin(self) -> None:
        """Begin a write: what an earlier one knew is written, or rolled back."""
        if self._open or self._changed:
            self.forget()

    def forget(self) -> None:
        """Forget what is known of windows and not written yet."""
        self._open.clear()
        self._changed.clear()
        self._joined.clear()

    # ---------------------------------------------------------------- an event arrives

    def offer(
        self,
        rows: Any,
        new: NewMember,
        event_seq: int,
        size: int,
        appended: Appended,
        at: int,
        counters: RunCounters,
    ) -> list[Decision] | None:
        """Offer an event to the window of its key; None if it has joined, else the decisions."""
        change = _Change(rows, at, counters, appended, new.firing, new.on_timeout, new.prepared)
        rule = RULES[new.settings.kind]
        if new.key is None:
            self._without_key(change, rule, new, event_seq, size)
        else:
            window = self._still_open(change, rule, new)
            while True:
                settings = new.settings if window is None else window.settings
                part = _part_of(settings, new.part)
                if part is None:
                    change.ignored.append(_not_a_part(new, settings))
                    break
                member = Member(part, at, size)
                if window is not None and _is_full(window, member):
                    if rule.when_full == "ignore":
                        change.ignored.append(_ignored(new, f"the window is full ({_most()})"))
                        break
                    self._end_full(change, rule, window)
                    window = None
                    continue
                view = None if window is None else self._view(window)
                window, again = self._apply(
                    change, window, rule.arrive(settings, view, member), (new, event_seq, member)
                )
                if not again:
                    break
            if window is not None and window.due_at is not None:
                deadline = instant(window.due_at)
                appended.deadline = min(appended.deadline or deadline, deadline)
        return None if change.joined else change.ignored

    def _still_open(self, change: _Change, rule: Rule, new: NewMember) -> _Open | None:
        """Return the open window of a key, once what is due or declared otherwise has ended."""
        assert new.key is not None
        window = self._find(new.flow, new.key)
        if window is None:
            return None
        if _is_another(window.settings, new.settings):
            self._end_changed(change, window, new.settings)
            return None
        if rule.due_first and window.due_at is not None and window.due_at <= change.at:
            steps = rule.due(window.settings, self._view(window), change.at)
            window, _ = self._apply(change, window, steps)
        return window

    def _without_key(
        self, change: _Change, rule: Rule, new: NewMember, event_seq: int, size: int
    ) -> None:
        """Let an event without a key run alone; it joins no pattern."""
        part = _part_of(new.settings, new.part)
        if rule.when_full != "fire" or part is None:
            change.ignored.append(_ignored(new, "per= gave no key, so it joins no window"))
            return
        of_all = self._find(new.flow, "")
        window = self._new(replace(new, key=""), change.at)
        joining = (new, event_seq, Member(part, change.at, size))
        self._apply(change, window, (Join(change.at), Fire()), joining)
        self._open[new.flow, ""] = of_all

    def _end_full(self, change: _Change, rule: Rule, window: _Open) -> None:
        words = f"the window was full: {_most()}"
        self._apply(change, window, (Fire(words) if rule.when_full == "fire" else Expire(words),))

    def _end_changed(self, change: _Change, window: _Open, now: WindowSettings) -> None:
        """End a window whose flow declares another one now: it fires as it was."""
        words = f"the flow has {now.kind}(…) now"
        if window.settings.kind == now.kind:
            words = "the flow names other triggers now"
        step: Step = Fire(words)
        if RULES[window.settings.kind].when_full == "expire":
            step = Expire(words)
        elif RULES[window.settings.kind].when_full == "ignore":
            step = Close(words)
        self._apply(change, window, (step,))

    # ---------------------------------------------------------------- steps

    def _apply(
        self,
        change: _Change,
        window: _Open | None,
        steps: Sequence[Step],
        joining: tuple[NewMember, int, Member] | None = None,
    ) -> tuple[_Open | None, bool]:
        """Apply steps in order; returns the window that is open then, and whether to ask again."""
        for step in steps:
            if isinstance(step, Join | Open) and window is None:
                assert joining is not None
                window = self._new(joining[0], change.at)
            if isinstance(step, Join):
                assert joining is not None and window is not None
                self._join(change, window, joining, step.due_at)
            elif isinstance(step, Ignore):
                assert joining is not None
                change.ignored.append(_ignored(joining[0], step.words))
            elif isinstance(step, AskAgain):
                return None, True
            else:
                assert window is not None
                if isinstance(step, Open | Postpone):
                    window.due_at = step.due_at
                    self._changed[window.seq] = window
                elif isinstance(step, Release):
                    self._release(change, window, step)
                else:
                    self._end(change, window, step)
                    window = None
        return window, False

    def _new(self, new: NewMember, at: int) -> _Open:
        """Open a window of a flow and a key."""
        self._last += 1
        assert new.key is not None
        window = _Open(
            self._last, mint_id(), new.flow, new.key, new.settings, opened_at=at, is_new=True
        )  # fmt: skip
        self._open[new.flow, new.key] = window
        self._changed[window.seq] = window
        return window

    def _join(
        self,
        change: _Change,
        window: _Open,
        joining: tuple[NewMember, int, Member],
        due_at: int | None,
    ) -> None:
        new, event_seq, member = joining
        window.positions += 1
        window.members += 1
        window.bytes += member.bytes
        window.due_at = due_at
        row = _MemberRow(
            window.seq, window.positions, event_seq, member.part, member.at, member.bytes,
            None if new.keys is None else dump(new.keys), new.order_key, new.priority,
        )  # fmt: skip
        self._joined += row
        window.joined.append(row)
        self._changed[window.seq] = window
        change.joined = True
        answer = change.answer
        if isinstance(answer, Appended):
            answer.windows = {**answer.windows, new.flow: window.id}
            if window.settings.kind == "debounce":
                self._schedule(change, window, event_seq)

    def _schedule(self, change: _Change, window: _Open, event_seq: int) -> None:
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

    def _release(self, change: _Change, window: _Open, step: Release) -> None:
        """Let members leave a window, with one decision for all of them."""
        self._flush_all(change)
        which = (step.before, step.part)
        self._decide(change, window, Reason.EXPIRED, step.words, *which)
        found = self._connection.execute(_SQL["release"], (window.seq, *which)).fetchall()
        gone: list[Any] = list(found)
        window.members -= len(gone)
        window.bytes -= sum(size for _, size in gone)
        window.joined.clear()
        window.is_new = False
        self._changed[window.seq] = window
        self._unmatch([event for event, _ in gone])

    # ---------------------------------------------------------------- the end of a window

    def _end(self, change: _Change, window: _Open, step: Fire | Expire | Close) -> None:
        window.closed_at = change.at
        self._open[window.flow, window.key] = None
        self._changed[window.seq] = window
        if isinstance(step, Fire):
            window.state = "fired"
            self._fire(change, window, window.flow, change.flow, step.words)
        elif isinstance(step, Expire):
            window.state = "expired"
            self._expire(change, window, step.words)
        else:
            window.state = "closed"
            self._end_members(change, window, Reason.WINDOWED, step.words)

    def _expire(self, change: _Change, window: _Open, words: str) -> None:
        flow, firing = window.settings.on_timeout, change.on_timeout
        if flow is None or firing is None or not window.members:
            self._end_members(change, window, Reason.EXPIRED, words)
            return
        self._flush_all(change)
        self._decide(change, window, Reason.EXPIRED, words)
        self._fire(change, window, flow, firing, "")

    def _end_members(
        self,
        change: _Change,
        window: _Open,
        reason: Reason,
        words: str,
        facts: Mapping[str, str] = NOTHING,
    ) -> None:
        """Leave a decision with each member of a window that ends without a run."""
        self._flush_all(change)
        self._decide(change, window, reason, words, facts=facts)
        members: list[Any] = self._connection.execute(_SQL["members"], (window.seq,)).fetchall()
        self._unmatch([event for (event,) in members])

    def _decide(
        self,
        change: _Change,
        window: _Open,
        reason: Reason,
        words: str,
        before: int | None = None,
        part: int | None = None,
        facts: Mapping[str, str] = NOTHING,
    ) -> None:
        """Store one decision with each of the members; they must be in the table."""
        named = {"rule": f"{window.settings.kind}(…)", "window": window.id, **facts}
        made = Decision(window.flow, reason, words, {**named, **_key_fact(window.key)})
        text = pack_decisions((made,), change.at)
        self._connection.execute(_SQL["decide"], (window.seq, text, before, part))
        decided = (made,) * self._connection.changes()
        change.answer.decided = (*change.answer.decided, *decided)

    def _unmatch(self, events: Sequence[int]) -> None:
        self._connection.execute(_SQL["unmatch"], (dump_list(events),))

    def _fire(
        self, change: _Change, window: _Open, flow: str, firing: Firing | None, words: str
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
            facts = {"run": run.id, "window": window.id, **_key_fact(window.key)}
            told = Decision(flow, Reason.WINDOWED, words, facts)
            self._flush_all(change)
            add_decisions(self._connection, first, (told,), change.at)

    def _run_of(
        self, change: _Change, window: _Open, flow: str, firing: Firing, chosen: _Chosen
    ) -> NewRun:
        prepared, change.prepared = change.prepared, None
        if prepared is not None and prepared.state is RunState.RUNNING and flow == window.flow:
            is_whole = window.is_new and window.joined[0].event_seq > self.before
            if is_whole:  # all its members came with this write, and are in the caller's memory
                prepared.window_seq = window.seq
                return prepared
        is_own = flow == window.flow
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

    def _scheduled(self, change: _Change, window: _Open) -> str | None:
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
        self, change: _Change, window: _Open, run: NewRun, run_id: str, made: Appended
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
            events=[row.event_seq for row in window.joined] if is_prepared else (),
        )
        answer.fired = (*answer.fired, fired)

    def _chosen(self, window: _Open) -> tuple[int, _Chosen]:
        """Return the first event of a window, and the member that its run takes its keys from."""
        takes_last = window.settings.keep == "last"
        if window.is_new:
            of = window.joined[-1 if takes_last else 0]
            chosen = _Chosen(of.event_seq, of.order_key, of.keys, of.priority)
            return window.joined[0].event_seq, chosen
        self.flush()
        first = self._member(window, "first_member")
        return first.event_seq, self._member(window, "last_member") if takes_last else first

    def _member(self, window: _Open, which: str) -> _Chosen:
        row: Any = self._connection.execute(_SQL[which], (window.seq,)).fetchone()
        return _Chosen(*row)

    def _add_own_event(self, change: _Change, window: _Open) -> None:
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
        row = _MemberRow(window.seq, window.positions, seq, 0, change.at, 0, None, None, None)
        self._joined += row
        window.joined.append(row)

    # ---------------------------------------------------------------- deadlines, operators

    def close_due(
        self,
        rows: Any,
        counters: RunCounters,
        at: int,
        flows: Mapping[str, Firing],
        limit: int,
        told: Mapping[str, Told],
    ) -> ClosedWindows:
        """Ask the rules of the windows that are due what becomes of them.

        Of a flow in `told` only those whose absence would have been noticed.
        """
        self.forget()
        answer = ClosedWindows()
        found = self._due(at, flows, limit, told)
        for row in found:
            window = _opened(row)
            change = _Change(rows, at, counters, answer, flows.get(window.flow))
            change.on_timeout = flows.get(window.settings.on_timeout or "")
            rule = RULES[window.settings.kind]
            self._apply(change, window, rule.due(window.settings, self._view(window), at))
            self._open.clear()  # two windows of one key may be open after a flow was renamed
        self._runs.insert(rows)
        self.forget()
        answer.more = len(found) >= limit
        if not answer.more:
            next_due: int | None = self._connection.execute(
                _SQL["next_due"], (dump_list(flows), at)
            ).get
            answer.next_due_at = instant_or_none(next_due)
        if told and not answer.more:
            held: list[Any] = self._connection.execute(
                _SQL["held"], (at, dump_list(told))
            ).fetchall()
            answer.held = [flow for (flow,) in held]
        return answer

    def _due(
        self, at: int, flows: Mapping[str, Firing], limit: int, told: Mapping[str, Told]
    ) -> list[Any]:
        """Return the rows of the windows that are due and may close, at most `limit` of a kind."""
        served = dump_list(name for name in flows if name not in told)
        found: list[Any] = self._connection.execute(_SQL["due"], (at, served, limit)).fetchall()
        for flow, bound in told.items():
            values = (at, flow, limit, micros(bound.to), micros_or_none(bound.since))
            if flow in flows:
                found += self._connection.execute(_SQL["due_of"], values).fetchall()
        return found

    def fire(
        self, rows: Any, counters: RunCounters, at: int, window_id: str, firing: Firing, by: str
    ) -> ClosedWindows:
        """Fire an open window at once, as an operator wants it; raises `NotFound`."""
        window = self._by_id(window_id)
        answer = ClosedWindows()
        change = _Change(rows, at, counters, answer, firing)
        self._apply(change, window, (Fire(f"fired by {by or 'an operator'}"),))
        self._runs.insert(rows)
        self.forget()
        return answer

    def drop(
        self, rows: Any, counters: RunCounters, at: int, window_id: str, by: str
    ) -> ClosedWindows:
        """Drop an open window: its members start nothing; raises `NotFound`."""
        window = self._by_id(window_id)
        answer = ClosedWindows()
        change = _Change(rows, at, counters, answer, None)
        window.state, window.closed_at = "dropped", at
        self._changed[window.seq] = window
        words = "an operator has dropped the window"
        found: Any = self._connection.execute(_SQL["scheduled_run"], (window.seq,)).fetchone()
        if found is not None:
            self._connection.execute(_SQL["cancel_run"], (found[0], at, by or None))
            counters.move(RunState.SCHEDULED, RunState.CANCELLED)
            row: Any = self._connection.execute(_RUN, (found[0],)).fetchone()
            answer.cancelled = (run_from(row),)
        facts = {"by": by} if by else {}
        self._end_members(change, window, Reason.DROPPED, words, facts)
        self._runs.insert(rows)
        self.forget()
        return answer

    def open_alone(self, flow: str, settings: WindowSettings, at: int, due_at: int) -> bool:
        """Open a window without a member, once in the life of a flow; False if it was before."""
        mark = opened_mark(flow)
        if self._connection.execute(_SQL["was_opened"], (mark,)).get is not None:
            return False
        self._connection.execute(_SQL["mark_opened"], (mark,))
        self._last += 1
        window = _Open(self._last, mint_id(), flow, "", settings, opened_at=at, due_at=due_at)
        _WRITE.run(self._connection, list(window.row()))
        return True

    # ---------------------------------------------------------------- what is there

    def _find(self, flow: str, key: str) -> _Open | None:
        """Return the open window of a flow and a key, read once in a transaction."""
        if (flow, key) not in self._open:
            row: Any = self._connection.execute(_SQL["open_of"], (flow, key)).fetchone()
            self._open[flow, key] = None if row is None else _opened(row)
        return self._open[flow, key]

    def _by_id(self, window_id: str) -> _Open:
        self.forget()
        row: Any = self._connection.execute(_SQL["open_by_id"], (window_id,)).fetchone()
        if row is None:
            raise NotFound(f"there is no open window {window_id}")
        return _opened(row)

    def _view(self, window: _Open) -> OpenWindow:
        return OpenWindow(
            settings=window.settings,
            opened_at=window.opened_at,
            due_at=window.due_at,
            count=window.members,
            bytes=window.bytes,
            members=_StoredMembers(self._connection, self, window.seq),
        )

    def _flush_all(self, change: _Change) -> None:
        """Insert what is pending, so that statements find all events, runs and members."""
        self._runs.insert(change.rows)
        self.flush()


class _StoredMembers:
    """What a rule asks of the members of an open window."""

    def __init__(self, connection: apsw.Connection, windows: Windows, seq: int) -> None:
        self._connection = connection
        self._windows = windows
        self._seq = seq

    def parts(self) -> Set[int]:
        """Return the parts of which there is a member."""
        self._windows.flush()
        rows: list[Any] = self._connection.execute(_SQL["parts"], (self._seq,)).fetchall()
        return {part for (part,) in rows}

    def count_after(self, at: int) -> int:
        """Return how many members were accepted after an instant."""
        self._windows.flush()
        return int(self._connection.execute(_SQL["count_after"], (self._seq, at)).get)

    def oldest(self) -> int | None:
        """Return when the oldest member was accepted."""
        self._windows.flush()
        found: int | None = self._connection.execute(_SQL["oldest"], (self._seq,)).get
        return found


def opened_mark(flow: str) -> str:
    """Return the name under which it is noted that a window of a flow was opened by itself."""
    return f"window:{flow}"


def _opened(row: Sequence[Any]) -> _Open:
    seq, window_id, flow, key, settings, opened_at, due_at, members, size, positions = row
    return _Open(
        seq, window_id, flow, key, WindowSettings.from_json(settings), opened_at, due_at,
        members, size, positions,
    )  # fmt: skip


def _part_of(settings: WindowSettings, trigger: str) -> int | None:
    """Return the part of a trigger in a window, None if it has none there."""
    if not settings.parts:
        return 0
    return settings.parts.index(trigger) if trigger in settings.parts else None


def _is_another(before: WindowSettings, now: WindowSettings) -> bool:
    """Whether a flow declares another window than it did when this one was opened."""
    return before.kind != now.kind or set(before.parts) != set(now.parts)


def _is_full(window: _Open, member: Member) -> bool:
    has_members = window.members > 0
    return has_members and (
        window.members >= MOST_MEMBERS or window.bytes + member.bytes > MOST_BYTES
    )


def _most() -> str:
    return f"{MOST_MEMBERS:,} events or {MOST_BYTES // 2**20} MiB are the most"


def _ignored(new: NewMember, words: str) -> Decision:
    facts = {"rule": f"{new.settings.kind}(…)", **_key_fact(new.key)}
    return Decision(new.flow, Reason.WINDOWED, words, facts)


def _not_a_part(new: NewMember, settings: WindowSettings) -> Decision:
    words = f"{new.part} is no part of the window that is open: {', '.join(settings.parts)}"
    return _ignored(new, words)


def _key_fact(key: str | None) -> dict[str, str]:
    return {} if not key else {"key": key}
