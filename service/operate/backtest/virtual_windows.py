"""Windows of one flow on a virtual clock: its rule is asked as the journal asks it.

A window that has the events of a real one closes late where that one did, and by hand where an
operator closed it. An absence is not told while the real window was held open past its deadline:
nobody could have told then. Not here: what becomes of what has fired (`windows`).
"""

from __future__ import annotations

import heapq
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from typing import Protocol

from turnout.service.domain.decisions import Reason
from turnout.service.domain.units import EPOCH, MICROSECOND
from turnout.service.domain.windows.rules import RULES
from turnout.service.domain.windows.window import (
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
    is_full,
    most_words,
)
from turnout.service.journal.records import NewMember, PastWindow

from .report import Asked

_ON_TIME = 1_000_000
"""How late a deadline may be noticed without having been put off, in microseconds."""


def micros(at: datetime) -> int:
    """Return an instant as whole microseconds."""
    return (at - EPOCH) // MICROSECOND


@dataclass(slots=True)
class Joining:
    """An event that is offered to a window; `asked` is None of one from before the period.

    `past` is the real window that it is in.
    """

    new: NewMember
    event: str
    at: int
    bytes: int
    asked: Asked | None
    past: PastWindow | None


@dataclass(slots=True)
class VirtualWindow:
    """An open window; `past` is the real one that it follows.

    `is_put_off`: it was held open past its deadline.
    """

    key: str
    settings: WindowSettings
    opened_at: int
    due_at: int | None = None
    past: PastWindow | None = None
    bytes: int = 0
    is_put_off: bool = False
    members: list[Joining] = field(default_factory=list)
    instants: list[int] = field(default_factory=list)
    by_part: Counter[int] = field(default_factory=Counter)

    def view(self) -> OpenWindow:
        """Return the window as its rule sees it."""
        return OpenWindow(
            settings=self.settings,
            opened_at=self.opened_at,
            due_at=self.due_at,
            count=len(self.members),
            bytes=self.bytes,
            members=self,
        )

    def parts(self) -> Set[int]:
        """Return the parts of which there is a member."""
        return self.by_part.keys()

    def count_after(self, at: int) -> int:
        """Return how many members were accepted after an instant."""
        return len(self.instants) - bisect_right(self.instants, at)

    def oldest(self) -> int | None:
        """Return when the oldest member was accepted."""
        return self.instants[0] if self.instants else None

    def join(self, member: Joining, part: int) -> None:
        """Take a member."""
        self.members.append(member)
        insort(self.instants, member.at)
        self.by_part[part] += 1
        self.bytes += member.bytes

    def release(self, step: Release) -> list[Joining]:
        """Let members leave; returns them."""
        gone = [each for each in self.members if self._leaves(each, step)]
        kept = [each for each in self.members if not self._leaves(each, step)]
        self.members, self.instants, self.by_part, self.bytes = [], [], Counter(), 0
        for each in kept:
            self.join(each, self._part(each))
        return gone

    def _leaves(self, member: Joining, step: Release) -> bool:
        if step.before is not None and member.at > step.before:
            return False
        return step.part is None or self._part(member) == step.part

    def _part(self, member: Joining) -> int:
        return self.settings.part_of(member.new.part) or 0

    @property
    def follows(self) -> bool:
        """Whether a real window with the same settings tells when this one closes."""
        return self.past is not None and self.past.settings == self.settings

    @property
    def closed_by_hand_at(self) -> int | None:
        """When an operator closes it, if one does."""
        past = self.past
        if past is None or past.closed_at is None or not (past.by_hand and self.follows):
            return None
        return micros(past.closed_at)

    def lost_members_at(self, at: int) -> bool:
        """Whether members had left the real window before an operator closed it at an instant."""
        is_due = self.due_at is not None and self.due_at <= at
        return is_due and self.past is not None and len(self.members) > self.past.members

    @property
    def is_dropped(self) -> bool:
        """Whether an operator closes it without a run."""
        return self.past is not None and self.past.state == "dropped"

    def closes_at(self) -> int | None:
        """Return when its rule is asked at its deadline, or an operator closes it."""
        due_at, past = self.due_at, self.past
        if past is None or not self.follows:
            return due_at
        closed_at = None if past.closed_at is None else micros(past.closed_at)
        if self.settings.kind == "count" and due_at is not None:  # it goes on at many deadlines
            return due_at if closed_at is None or not past.by_hand else min(due_at, closed_at)
        if past.by_hand:
            return closed_at
        if closed_at is None or (past.state == "closed" and self.settings.kind == "absent"):
            return None
        return closed_at if due_at is None else max(due_at, closed_at)


class Ends(Protocol):
    """Who is told what becomes of windows and their events."""

    def closed(self, window: VirtualWindow, outcome: str, at: int, words: str) -> None:
        """Take a window that has closed: as `fired`, or with a reason for its events."""

    def released(self, members: Sequence[Joining], words: str) -> None:
        """Take members that have left a window that stays open: they are `expired`."""


class VirtualWindows:
    """The open windows of a flow. `real` are those without a member, by key and opening."""

    def __init__(
        self, settings: WindowSettings, ends: Ends, real: Mapping[tuple[str, int], PastWindow]
    ) -> None:
        self._settings = settings
        self._ends = ends
        self._real = real
        self._open: dict[str, VirtualWindow] = {}
        self._due: list[tuple[int, int, VirtualWindow]] = []
        self._order = count()
        self.put_off = 0  # absences that were held open past their deadline
        self.not_told = 0  # absences of which it is not known whether they would have been

    # ---------------------------------------------------------------- an event arrives

    def offer(self, joining: Joining) -> str | None:
        """Offer an event to the window of its key; returns why it does not join, None if it does.

        What is due before it has been closed.
        """
        new, rule = joining.new, RULES[joining.new.settings.kind]
        if new.key is None:
            return self._without_key(joining, rule)
        window = self._still_open(rule, new.key, joining.at)
        while True:
            settings = new.settings if window is None else window.settings
            part = settings.part_of(new.part)
            if part is None:
                return f"{new.part} is no part of the window that is open"
            if window is not None and is_full(len(window.members), window.bytes, joining.bytes):
                words = f"the window was full: {most_words()}"
                if rule.when_full == "ignore":
                    return f"the window is full ({most_words()})"
                step = Fire(words) if rule.when_full == "fire" else Expire(words)
                self._end(window, step, joining.at)
                window = None
                continue
            member = Member(part, joining.at, joining.bytes)
            view = None if window is None else window.view()
            ignored, again = self._apply(
                window, rule.arrive(settings, view, member), joining.at, (joining, part)
            )
            if not again:
                return ignored
            window = None

    def _still_open(self, rule: Rule, key: str, at: int) -> VirtualWindow | None:
        """Return the open window of a key, once what is due has ended."""
        window = self._open.get(key)
        if window is None:
            return None
        if rule.due_first and window.due_at is not None and window.due_at <= at:
            self._apply(window, rule.due(window.settings, window.view(), at), at)
            return self._open.get(key)
        self._look_whether_put_off(window, at)
        return window

    def _without_key(self, joining: Joining, rule: Rule) -> str | None:
        part = joining.new.settings.part_of(joining.new.part)
        if rule.when_full != "fire" or part is None:
            return "per= gave no key, so it joins no window"
        window = VirtualWindow("", joining.new.settings, joining.at, past=joining.past)
        window.join(joining, part)
        self._ends.closed(window, "fired", joining.at, "")
        return None

    def open_alone(self, key: str, at: int, due_at: int | None, past: PastWindow | None) -> None:
        """Open a window without a member, if none is open."""
        if key not in self._open:
            self._opened(VirtualWindow(key, self._settings, at, due_at, past))

    # ---------------------------------------------------------------- time passes

    def next_at(self) -> int | None:
        """Return when the next window closes, or its rule is to be asked."""
        while self._due:
            at, _, window = self._due[0]
            if self._open.get(window.key) is window and window.closes_at() == at:
                return at
            heapq.heappop(self._due)
        return None

    def closed_by_hand_next(self) -> int | None:
        """Return the real window that an operator closes next; None: something else is next."""
        at = self.next_at()
        if at is None:
            return None
        window = self._due[0][2]
        return window.past.seq if window.past and window.closed_by_hand_at == at else None

    def close_next(self) -> None:
        """Close the window that is due next, as its rule says, or as an operator did."""
        at, _, window = heapq.heappop(self._due)
        by_hand_at = window.closed_by_hand_at
        if by_hand_at == at and not window.lost_members_at(at):
            del self._open[window.key]
            outcome = Reason.DROPPED if window.is_dropped else "fired"
            self._ends.closed(window, outcome, at, "an operator has closed the window")
            return
        if window.settings.kind == "absent" and not window.follows:
            self.not_told += 1
        self._look_whether_put_off(window, at)
        steps = RULES[window.settings.kind].due(window.settings, window.view(), at)
        if by_hand_at is not None and isinstance(steps[0], Expire):
            window.due_at = by_hand_at  # the real one had not looked yet: it looks seldom
            self._opened(window)
            return
        self._apply(window, steps, at)

    def end(self, at: int) -> Sequence[VirtualWindow]:
        """Return the windows that are open at the end of the period."""
        for window in self._open.values():
            self._look_whether_put_off(window, at)
        return list(self._open.values())

    def _look_whether_put_off(self, window: VirtualWindow, at: int) -> None:
        """Count an absence that is open past its deadline: nobody could have told it then."""
        is_late = window.due_at is not None and at - window.due_at > _ON_TIME
        if is_late and window.settings.kind == "absent" and not window.is_put_off:
            window.is_put_off = True
            self.put_off += 1

    # ---------------------------------------------------------------- steps

    def _apply(
        self,
        window: VirtualWindow | None,
        steps: Sequence[Step],
        at: int,
        joining: tuple[Joining, int] | None = None,
    ) -> tuple[str | None, bool]:
        """Apply steps in order; returns why the event does not join, and whether to ask again."""
        ignored: str | None = None
        for step in steps:
            if isinstance(step, Join | Open) and window is None:
                assert joining is not None
                new = joining[0].new
                window = VirtualWindow(new.key or "", new.settings, at)
            if isinstance(step, Ignore):
                ignored = step.words
            elif isinstance(step, AskAgain):
                return None, True
            elif isinstance(step, Join):
                assert joining is not None and window is not None
                window.due_at = step.due_at
                window.join(*joining)
                window.past = joining[0].past
                self._opened(window)
            elif isinstance(step, Open | Postpone):
                assert window is not None
                window.due_at, window.is_put_off = step.due_at, False
                window.past = self._real.get((window.key, at), window.past)
                self._opened(window)
            elif isinstance(step, Release):
                assert window is not None
                self._ends.released(window.release(step), step.words)
            else:
                assert window is not None
                self._end(window, step, at)
                window = None
        return ignored, False

    def _opened(self, window: VirtualWindow) -> None:
        """Note that a window is open, and when it closes as far as is known."""
        self._open[window.key] = window
        closes_at = window.closes_at()
        if closes_at is not None:
            heapq.heappush(self._due, (closes_at, next(self._order), window))

    def _end(self, window: VirtualWindow, step: Fire | Expire | Close, at: int) -> None:
        del self._open[window.key]
        outcome: str = "fired"
        if not isinstance(step, Fire):
            outcome = Reason.EXPIRED if isinstance(step, Expire) else Reason.WINDOWED
        self._ends.closed(window, outcome, at, step.words)
