"""Windows: applies what a rule says to the windows of the journal.

The rule of a window is asked inside the transaction that stores an event, in its turn, and again
at the deadline. Not here: what a rule says (`domain/windows`), when a deadline has come
(`intake/windows`), what a write knows of windows (`open_windows`), and their runs (`window_runs`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import apsw

from turnout.service.domain.decisions import Reason
from turnout.service.domain.windows.firing import FIRED_BY, Firing
from turnout.service.domain.windows.rules import ONLY_JOIN, RULES
from turnout.service.domain.windows.window import (
    AskAgain,
    Close,
    Expire,
    Fire,
    Ignore,
    Join,
    Member,
    Open,
    Postpone,
    Release,
    Rule,
    Step,
    WindowSettings,
    is_full,
    most_words,
)
from turnout.service.journal.records import (
    Appended,
    ClosedWindows,
    Decision,
    NewMember,
    NewRun,
    Told,
)

from .counters import RunCounters
from .open_windows import KnownWindow, KnownWindows, MemberRow, opened_from
from .statements import load
from .values import dump, dump_list, instant, instant_or_none, micros, micros_or_none
from .window_runs import Change, Runs, WindowEnds, key_fact

_SQL = load("windows")
_deadline = lru_cache(maxsize=64)(instant)  # many members of one append have the same


class Windows:
    """The windows of the journal, inside the transaction the writer opened."""

    def __init__(self, connection: apsw.Connection, runs: Runs) -> None:
        self._connection = connection
        self._runs = runs
        self.known = KnownWindows(connection)
        self.ends = WindowEnds(connection, self.known, runs)

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
        prepared: Iterator[NewRun] | None = None,
    ) -> list[Decision] | None:
        """Offer an event to the window of its key; None if it has joined, else the decisions.

        `prepared` are the runs that are left of the member's, None if it is all of them.
        """
        if self._only_join(new, range(event_seq, event_seq + 1), (size,), appended, at):
            return None
        change = Change(rows, at, counters, appended, new.firing, new.on_timeout)
        change.prepared = iter(new.prepared) if prepared is None else prepared
        rule = RULES[new.settings.kind]
        if new.key is None:
            self._without_key(change, rule, new, event_seq, size)
        else:
            window = self._still_open(change, rule, new)
            while True:
                settings = new.settings if window is None else window.settings
                part = settings.part_of(new.part)
                if part is None:
                    change.ignored.append(_not_a_part(new, settings))
                    break
                member = Member(part, at, size)
                if window is not None and is_full(window.members, window.bytes, size):
                    if rule.when_full == "ignore":
                        change.ignored.append(_ignored(new, f"the window is full ({most_words()})"))
                        break
                    self._end_full(change, rule, window)
                    window = None
                    continue
                view = None if window is None else self.known.view(window)
                window, again = self._apply(
                    change, window, rule.arrive(settings, view, member), (new, event_seq, member)
                )
                if not again:
                    break
            if window is not None and window.due_at is not None:
                deadline = _deadline(window.due_at)
                appended.deadline = min(appended.deadline or deadline, deadline)
        return None if change.joined else change.ignored

    def offer_all(
        self,
        rows: Any,
        new: NewMember,
        seqs: range,
        sizes: Sequence[int],
        appended: Appended,
        at: int,
        counters: RunCounters,
    ) -> list[tuple[int, list[Decision]]]:
        """Offer events one behind the other; they are in the table already.

        Returns the decisions about those that have not joined, by seq. In `appended` the window and
        the deadline are those of the last one.
        """
        ignored = []
        prepared = iter(new.prepared)
        while seqs:
            joined = self._only_join(new, seqs, sizes, appended, at)
            if not joined:
                joined, appended.deadline = 1, None
                decided = self.offer(rows, new, seqs[0], sizes[0], appended, at, counters, prepared)
                if decided is not None:
                    ignored.append((seqs[0], decided))
            seqs, sizes = seqs[joined:], sizes[joined:]
        return ignored

    def _only_join(
        self, new: NewMember, seqs: range, sizes: Sequence[int], appended: Appended, at: int
    ) -> int:
        """Let those of the next events join the window of their key that do no more; how many.

        The quick way of most events of a batch: nothing closes, and the deadline stays.
        """
        only_join = ONLY_JOIN.get(new.settings.kind)
        if only_join is None or new.key is None:
            return 0
        window = self.known.open_here(new.flow, new.key)
        if window is None or window.settings is not new.settings:
            return 0
        due_at = window.due_at
        if due_at is None or due_at <= at:
            return 0
        part = new.settings.part_of(new.part)
        if part is None:
            return 0
        joining = only_join(new.settings, window.members, window.bytes, sizes)
        if len(seqs) == 1 and joining:
            self._add(window, new, seqs[0], Member(part, at, sizes[0]), due_at)
        elif joining:
            self.known.join_together(window, seqs[:joining], part, at, sum(sizes[:joining]))
        else:
            return 0
        appended.windows = {**appended.windows, new.flow: window.id}
        appended.deadline = min(appended.deadline or _deadline(due_at), _deadline(due_at))
        return joining

    def _still_open(self, change: Change, rule: Rule, new: NewMember) -> KnownWindow | None:
        """Return the open window of a key, once what is due or declared otherwise has ended."""
        assert new.key is not None
        window = self.known.find(new.flow, new.key)
        if window is None:
            return None
        if window.settings == new.settings:
            window.settings = new.settings  # found to be the same at once, from now on
        elif new.settings.is_another(window.settings):
            self._end_changed(change, window, new.settings)
            return None
        if rule.due_first and window.due_at is not None and window.due_at <= change.at:
            steps = rule.due(window.settings, self.known.view(window), change.at)
            window, _ = self._apply(change, window, steps)
        return window

    def _without_key(
        self, change: Change, rule: Rule, new: NewMember, event_seq: int, size: int
    ) -> None:
        """Let an event without a key run alone; it joins no pattern."""
        part = new.settings.part_of(new.part)
        if rule.when_full != "fire" or part is None:
            change.ignored.append(_ignored(new, "per= gave no key, so it joins no window"))
            return
        of_all = self.known.find(new.flow, "")
        window = self.known.new(replace(new, key=""), change.at)
        joining = (new, event_seq, Member(part, change.at, size))
        self._apply(change, window, (Join(change.at), Fire()), joining)
        self.known.set_open(new.flow, "", of_all)

    def _end_full(self, change: Change, rule: Rule, window: KnownWindow) -> None:
        words = f"the window was full: {most_words()}"
        self._apply(change, window, (Fire(words) if rule.when_full == "fire" else Expire(words),))

    def _end_changed(self, change: Change, window: KnownWindow, now: WindowSettings) -> None:
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
        change: Change,
        window: KnownWindow | None,
        steps: Sequence[Step],
        joining: tuple[NewMember, int, Member] | None = None,
    ) -> tuple[KnownWindow | None, bool]:
        """Apply steps in order; returns the window that is open then, and whether to ask again."""
        for step in steps:
            if isinstance(step, Join | Open) and window is None:
                assert joining is not None
                window = self.known.new(joining[0], change.at)
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
                    self.known.changed(window)
                elif isinstance(step, Release):
                    self._release(change, window, step)
                else:
                    self._end(change, window, step)
                    window = None
        return window, False

    def _join(
        self,
        change: Change,
        window: KnownWindow,
        joining: tuple[NewMember, int, Member],
        due_at: int | None,
    ) -> None:
        new, event_seq, member = joining
        self._add(window, new, event_seq, member, due_at)
        change.joined = True
        answer = change.answer
        if isinstance(answer, Appended):
            answer.windows = {**answer.windows, new.flow: window.id}
            if window.settings.kind == "debounce":
                self.ends.schedule(change, window, event_seq)

    def _add(
        self,
        window: KnownWindow,
        new: NewMember,
        event_seq: int,
        member: Member,
        due_at: int | None,
    ) -> None:
        """Add a member to a window."""
        window.positions += 1
        window.members += 1
        window.bytes += member.bytes
        window.due_at = due_at
        row = MemberRow(
            window.seq, window.positions, event_seq, member.part, member.at, member.bytes,
            None if new.keys is None else dump(new.keys), new.order_key, new.priority,
        )  # fmt: skip
        self.known.joined(window, row)

    def _release(self, change: Change, window: KnownWindow, step: Release) -> None:
        """Let members leave a window, with one decision for all of them."""
        self.ends.flush_all(change)
        which = (step.before, step.part)
        self.ends.decide(change, window, Reason.EXPIRED, step.words, *which)
        found = self._connection.execute(_SQL["release"], (window.seq, *which)).fetchall()
        gone: list[Any] = list(found)
        window.members -= len(gone)
        window.bytes -= sum(size for _, size in gone)
        window.joined.clear()
        window.is_new = False
        self.known.changed(window)
        self.ends.unmatch([event for event, _ in gone])

    # ---------------------------------------------------------------- the end of a window

    def _end(self, change: Change, window: KnownWindow, step: Fire | Expire | Close) -> None:
        window.closed_at = change.at
        self.known.set_open(window.flow, window.key, None)
        self.known.changed(window)
        if isinstance(step, Fire):
            window.state = "fired"
            self.ends.fire(change, window, window.flow, change.flow, step.words)
        elif isinstance(step, Expire):
            window.state = "expired"
            self._expire(change, window, step.words)
        else:
            window.state = "closed"
            self.ends.end_members(change, window, Reason.WINDOWED, step.words)

    def _expire(self, change: Change, window: KnownWindow, words: str) -> None:
        flow, firing = window.settings.on_timeout, change.on_timeout
        if flow is None or firing is None or not window.members:
            self.ends.end_members(change, window, Reason.EXPIRED, words)
            return
        self.ends.flush_all(change)
        self.ends.decide(change, window, Reason.EXPIRED, words)
        self.ends.fire(change, window, flow, firing, "")

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
        self.known.forget()
        answer = ClosedWindows()
        found = self._due(at, flows, limit, told)
        for row in found:
            window = opened_from(row)
            change = Change(rows, at, counters, answer, flows.get(window.flow))
            change.on_timeout = flows.get(window.settings.on_timeout or "")
            rule = RULES[window.settings.kind]
            self._apply(change, window, rule.due(window.settings, self.known.view(window), at))
            self.known.forget_open()  # two windows of one key may be open after a flow was renamed
        self._runs.insert(rows)
        self.known.forget()
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
        window = self.known.by_id(window_id)
        answer = ClosedWindows()
        change = Change(rows, at, counters, answer, firing)
        self._apply(change, window, (Fire(f"{FIRED_BY}{by or 'an operator'}"),))
        self._runs.insert(rows)
        self.known.forget()
        return answer

    def drop(
        self, rows: Any, counters: RunCounters, at: int, window_id: str, by: str
    ) -> ClosedWindows:
        """Drop an open window: its members start nothing; raises `NotFound`."""
        window = self.known.by_id(window_id)
        answer = ClosedWindows()
        change = Change(rows, at, counters, answer, None)
        window.state, window.closed_at = "dropped", at
        self.known.changed(window)
        words = "an operator has dropped the window"
        self.ends.cancel_scheduled(change, window, by)
        facts = {"by": by} if by else {}
        self.ends.end_members(change, window, Reason.DROPPED, words, facts)
        self._runs.insert(rows)
        self.known.forget()
        return answer

    def open_alone(self, flow: str, settings: WindowSettings, at: int, due_at: int) -> bool:
        """Open a window without a member, once in the life of a flow; False if it was before."""
        mark = opened_mark(flow)
        if self._connection.execute(_SQL["was_opened"], (mark,)).get is not None:
            return False
        self._connection.execute(_SQL["mark_opened"], (mark,))
        self.known.new_alone(flow, settings, at, due_at)
        return True


def opened_mark(flow: str) -> str:
    """Return the name under which it is noted that a window of a flow was opened by itself."""
    return f"window:{flow}"


def _ignored(new: NewMember, words: str) -> Decision:
    facts = {"rule": f"{new.settings.kind}(…)", **key_fact(new.key)}
    return Decision(new.flow, Reason.WINDOWED, words, facts)


def _not_a_part(new: NewMember, settings: WindowSettings) -> Decision:
    words = f"{new.part} is no part of the window that is open: {', '.join(settings.parts)}"
    return _ignored(new, words)
