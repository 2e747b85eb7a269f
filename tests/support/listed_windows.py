"""Windows kept in lists: they apply the steps of the rules as the journal does, without a journal.

Each event is named by its number, in order of arrival. What became of it is in `ends`: the number
of the firing that it is in, or the word of its decision.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any, TypeAlias

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
    Step,
    WindowSettings,
)

Ended: TypeAlias = "int | str"


@dataclass(frozen=True)
class Arrived:
    """An event that has arrived."""

    number: int
    part: int
    at: int
    bytes: int = 1


@dataclass
class Listed:
    """The members of a window, in a list."""

    events: list[Arrived] = field(default_factory=list)

    def parts(self) -> Set[int]:
        return {each.part for each in self.events}

    def count_after(self, at: int) -> int:
        return sum(each.at > at for each in self.events)

    def oldest(self) -> int | None:
        return min((each.at for each in self.events), default=None)


@dataclass
class ListedWindow:
    """The window of one key under one rule, and all that has become of the events."""

    settings: WindowSettings
    members: Listed = field(default_factory=Listed)
    opened_at: int | None = None
    due_at: int | None = None
    ends: dict[int, Ended] = field(default_factory=dict)
    words: dict[int, str] = field(default_factory=dict)
    firings: list[tuple[int, list[int]]] = field(default_factory=list)
    expired: list[list[int]] = field(default_factory=list)

    def arrive(self, event: Arrived) -> None:
        """Let an event arrive, past the deadline if that has not been asked about yet."""
        rule = RULES[self.settings.kind]
        is_due = self.due_at is not None and event.at >= self.due_at
        if rule.due_first and is_due and self.open is not None:
            self.due(event.at)
        member = Member(event.part, event.at, event.bytes)
        self._apply(rule.arrive(self.settings, self.open, member), event, event.at)
        assert event.number in self.ends or event in self.members.events

    def due(self, at: int) -> None:
        """Ask the rule at the deadline."""
        window = self.open
        assert window is not None and window.due_at is not None and at >= window.due_at
        self._apply(RULES[self.settings.kind].due(self.settings, window, at), None, at)
        assert self.due_at is None or self.due_at > at, "the alarm would ring for ever"

    def open_empty(self, at: int) -> None:
        """Open a window without a member, as that of `absent` opens when its flow is served."""
        self.opened_at, self.due_at = at, at + self.settings.within

    @property
    def open(self) -> OpenWindow | None:
        """The window as a rule sees it, None if none is open."""
        if self.opened_at is None:
            return None
        return OpenWindow(
            settings=self.settings,
            opened_at=self.opened_at,
            due_at=self.due_at,
            count=len(self.members.events),
            bytes=sum(each.bytes for each in self.members.events),
            members=self.members,
        )

    def _apply(self, steps: Sequence[Step], event: Arrived | None, at: int) -> None:
        for step in steps:
            if event is None or not self._take(event, step, at):
                self._move(step, at)

    def _take(self, event: Arrived, step: Step, at: int) -> bool:
        """Apply a step that is about the event; return whether it is one."""
        match step:
            case Join(due_at):
                self._opened(at, due_at)
                self.members.events.append(event)
            case Ignore(words):
                self._end([event], "windowed", words)
            case AskAgain():
                self.arrive(event)
            case _:
                return False
        return True

    def _move(self, step: Step, at: int) -> None:
        """Apply a step that is about the window."""
        everybody = [*self.members.events]
        match step:
            case Open(due_at) | Postpone(due_at):
                assert (self.opened_at is None) == isinstance(step, Open)
                self._opened(at, due_at)
            case Release(words=words, before=before, part=part):
                aged = [each for each in everybody if before is not None and each.at <= before]
                left = aged or [each for each in everybody if each.part == part]
                assert left, "a release of nobody"
                self._end(left, "expired", words)
            case Fire():
                self.firings.append((at, [each.number for each in everybody]))
                self._end(everybody, len(self.firings) - 1)
                self._closed()
            case Expire(words):
                self.expired.append([each.number for each in everybody])
                self._end(everybody, "expired", words)
                self._closed()
            case Close(words):
                self._end(everybody, "windowed", words)
                self._closed()
            case _:
                raise AssertionError(step)

    def _opened(self, at: int, due_at: int | None) -> None:
        self.opened_at = at if self.opened_at is None else self.opened_at
        self.due_at = due_at

    def _closed(self) -> None:
        assert self.opened_at is not None
        self.opened_at = self.due_at = None

    def _end(self, events: Sequence[Arrived], end: Ended, words: str = "") -> None:
        for each in events:
            assert each.number not in self.ends, f"event {each.number} ends twice"
            self.ends[each.number] = end
            self.words[each.number] = words
            if each in self.members.events:
                self.members.events.remove(each)


def play(
    settings: WindowSettings, events: Sequence[Arrived], *, rings: Sequence[int] | None = None
) -> ListedWindow:
    """Let events arrive in order; the alarm rings on time, or only at the instants `rings`.

    It rings before the events of the same instant. In the end it rings until nothing is open.
    """
    window = ListedWindow(settings)
    waiting = None if rings is None else sorted(rings)
    for event in events:
        while (at := _next_ring(window, event.at, waiting)) is not None:
            window.due(at)
        window.arrive(event)
    while window.due_at is not None:
        window.due(window.due_at)
    return window


def _next_ring(window: ListedWindow, until: int, waiting: list[int] | None) -> int | None:
    """Return when the alarm rings next, up to an instant."""
    due_at: Any = window.due_at
    if due_at is None or due_at > until:
        return None
    if waiting is None:
        return int(due_at)
    return next((at for at in waiting if due_at <= at <= until), None)
