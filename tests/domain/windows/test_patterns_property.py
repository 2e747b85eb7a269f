"""The rules of the patterns do what one would say of the whole history, read with hindsight.

What is expected is found from the list of events alone: no deadline, no state, no step.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.listed_windows import Arrived, Listed, ListedWindow, play
from tests.support.window_hindsight import Life, counted, joined, sequences, silences
from turnout import event
from turnout.service.domain.windows.absent import absent
from turnout.service.domain.windows.all_of import all_of
from turnout.service.domain.windows.count import count
from turnout.service.domain.windows.sequence import SequenceRule, sequence
from turnout.service.domain.windows.window import Join, Member, OpenWindow, Step, WindowSettings

WITHIN = 5_000_000
PARTS = [event("a"), event("b"), event("c")]

History = list[Arrived]


def histories(parts: int) -> st.SearchStrategy[History]:
    """Return histories in which times meet deadlines, and each other."""
    one = st.tuples(st.integers(0, parts - 1), st.sampled_from([0, 1, 1, 2, 3, 4, 5, 6, 11]))
    return st.lists(one, max_size=40).map(_arrived)


def _arrived(drawn: Sequence[tuple[int, int]]) -> History:
    at, made = 0, []
    for number, (part, seconds) in enumerate(drawn):
        at += seconds * 1_000_000
        made.append(Arrived(number, part, at))
    return made


rings = st.none() | st.lists(st.integers(0, 100).map(lambda second: second * 1_000_000))
"""When the alarm rings: on time, or only then, so that deadlines pass unnoticed."""


def fired(window: ListedWindow) -> list[list[int]]:
    return [numbers for _, numbers in window.firings]


def all_ended(window: ListedWindow, events: History) -> bool:
    return window.ends.keys() == {each.number for each in events}


# ---------------------------------------------------------------- count


@given(n=st.integers(2, 5), events=histories(1), alarm=rings)
def test_count_fires_where_the_nth_young_event_comes(
    n: int, events: History, alarm: list[int] | None
) -> None:
    window = play(count(PARTS[0], n, timed()).settings, events, rings=alarm)
    assert fired(window) == counted(n, WITHIN, events)
    assert all(len(numbers) == n for numbers in fired(window))
    assert all_ended(window, events)


# ---------------------------------------------------------------- sequence


@given(parts=st.integers(2, 3), events=histories(3), alarm=rings)
def test_sequence_fires_with_the_last_first_part_and_what_followed_it(
    parts: int, events: History, alarm: list[int] | None
) -> None:
    events = [each for each in events if each.part < parts]
    window = play(sequence(*PARTS[:parts], within=timed()).settings, events, rings=alarm)
    assert fired(window) == sequences(parts, WITHIN, events)
    assert all_ended(window, events)


# ---------------------------------------------------------------- all_of


@given(parts=st.integers(2, 3), events=histories(3), alarm=rings)
def test_all_of_fires_when_each_part_has_come_since_the_first_event(
    parts: int, events: History, alarm: list[int] | None
) -> None:
    events = [each for each in events if each.part < parts]
    window = play(all_of(*PARTS[:parts], within=timed()).settings, events, rings=alarm)
    assert (fired(window), window.expired) == joined(parts, WITHIN, events)
    assert all_ended(window, events)


# ---------------------------------------------------------------- absent


@given(events=histories(2))
def test_absent_fires_where_nothing_was_heard(events: History) -> None:
    window = play(absent(PARTS[0], timed(), after=PARTS[1]).settings, events)
    assert fired(window) == silences(WITHIN, events, [Life(0)], 0)
    assert all_ended(window, events)


@given(events=histories(2), alarm=st.lists(st.integers(0, 100).map(lambda at: at * 1_000_000)))
def test_an_alarm_that_rings_late_fires_for_nothing_that_has_come_meanwhile(
    events: History, alarm: list[int]
) -> None:
    window = play(absent(PARTS[0], timed(), after=PARTS[1]).settings, events, rings=alarm)
    for at, numbers in window.firings:
        opened = events[numbers[0]]
        heard = [each for each in events[numbers[0] :] if each.part == 0 and each.at < at]
        assert at >= opened.at + WITHIN
        assert not heard
    assert all_ended(window, events)


def timed() -> str:
    return f"{WITHIN // 1_000_000}s"


# ---------------------------------------------------------------- negative controls


def differs(settings: WindowSettings, expected: Callable[[History], list[list[int]]]) -> bool:
    """Whether one of many random histories goes another way than expected."""
    chance = random.Random(7)
    for _ in range(300):
        events = _arrived([(chance.randrange(2), chance.randrange(4)) for _ in range(20)])
        if fired(play(settings, events)) != expected(events):
            return True
    return False


TWICE = count(PARTS[0], 3, timed()).settings
PAIR = sequence(*PARTS[:2], within=timed()).settings


def test_the_comparison_finds_a_count_whose_members_never_age(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def expected(events: History) -> list[list[int]]:
        return counted(3, WITHIN, events)

    assert not differs(TWICE, expected)
    monkeypatch.setattr(Listed, "count_after", lambda members, _at: len(members.events))
    assert differs(TWICE, expected)


def test_the_comparison_finds_a_sequence_that_keeps_the_older_first_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = SequenceRule.arrive

    def keep(
        rule: SequenceRule, settings: WindowSettings, window: OpenWindow | None, member: Member
    ) -> Sequence[Step]:
        if member.part == 0 and window is not None:
            return (Join(window.due_at),)
        return right(rule, settings, window, member)

    def expected(events: History) -> list[list[int]]:
        return sequences(2, WITHIN, events)

    assert not differs(PAIR, expected)
    monkeypatch.setattr(SequenceRule, "arrive", keep)
    assert differs(PAIR, expected)
