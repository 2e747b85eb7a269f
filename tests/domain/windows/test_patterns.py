"""The rules of count, sequence, all_of and absent, and what an author is told who errs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.listed_windows import Arrived, ListedWindow, play
from turnout import cron, event, flow, webhook
from turnout.service.domain.errors import SetupError
from turnout.service.domain.windows.absent import absent
from turnout.service.domain.windows.all_of import all_of
from turnout.service.domain.windows.count import count
from turnout.service.domain.windows.debounce import debounce
from turnout.service.domain.windows.sequence import sequence
from turnout.service.domain.windows.window import WindowSettings

SECOND = 1_000_000
A, B, C = event("a"), event("b"), event("c")


def happens(settings: WindowSettings, *events: tuple[str, float]) -> ListedWindow:
    """Play events, each the letter of its trigger and the second in which it comes."""
    arrived = [
        Arrived(number, "abc".index(letter), round(second * SECOND))
        for number, (letter, second) in enumerate(events, 1)
    ]
    return play(settings, arrived)


def runs(window: ListedWindow) -> list[tuple[float, list[int]]]:
    """Return each firing: in which second, with which events."""
    return [(at / SECOND, numbers) for at, numbers in window.firings]


# ---------------------------------------------------------------- count


FIVE = count(A, 5, "10m").settings


def test_the_event_that_makes_the_count_fires_with_all_of_them() -> None:
    window = happens(FIVE, *[("a", second) for second in (0, 60, 120, 180, 240, 300)])
    assert runs(window) == [(240, [1, 2, 3, 4, 5])]
    assert window.ends[6] == "expired", "the members of a firing count once"


def test_an_event_that_is_as_old_as_within_does_not_count() -> None:
    on_time = happens(FIVE, ("a", 0), ("a", 1), ("a", 2), ("a", 3), ("a", 599.999))
    assert runs(on_time) == [(599.999, [1, 2, 3, 4, 5])]
    late = happens(FIVE, ("a", 0), ("a", 1), ("a", 2), ("a", 3), ("a", 600), ("a", 600.5))
    assert runs(late) == [(600.5, [2, 3, 4, 5, 6])]
    assert late.words[1] == "there were 4 of 5 within 10m"


def test_the_events_of_a_count_that_age_out_together_have_one_decision() -> None:
    window = happens(FIVE, ("a", 0), ("a", 1), ("a", 2))
    assert window.expired == [[2, 3]], "the rest of the window, when the alarm looks again"
    assert set(window.ends.values()) == {"expired"}
    assert not window.firings


# ---------------------------------------------------------------- sequence


PAIR = sequence(A, B, within="10m").settings
THREE = sequence(A, B, C, within="10m").settings


def test_a_repeated_first_part_replaces_the_older_one_and_begins_the_time_anew() -> None:
    window = happens(PAIR, ("a", 0), ("a", 300), ("b", 800))
    assert runs(window) == [(800, [2, 3])]
    assert window.words[1] == "a later event of event:a has taken its place"


def test_a_second_part_before_the_first_is_nothing() -> None:
    window = happens(PAIR, ("b", 0), ("a", 1), ("b", 2), ("b", 3))
    assert runs(window) == [(2, [2, 3])]
    assert window.ends[1] == window.ends[4] == "windowed"
    assert window.words[1] == "it came before an event of event:a"


def test_the_first_part_of_yesterday_never_meets_the_second_of_today() -> None:
    window = happens(PAIR, ("a", 0), ("b", 86_400))
    assert not window.firings
    assert window.ends == {1: "expired", 2: "windowed"}
    assert window.words[1] == "event:a came, and event:b did not within 10m"


def test_the_last_part_at_the_deadline_is_too_late() -> None:
    assert not happens(PAIR, ("a", 0), ("b", 600)).firings
    assert runs(happens(PAIR, ("a", 0), ("b", 599.999999))) == [(599.999999, [1, 2])]


def test_of_a_middle_part_the_first_event_counts() -> None:
    window = happens(THREE, ("a", 0), ("c", 1), ("b", 2), ("b", 3), ("c", 4))
    assert runs(window) == [(4, [1, 3, 5])]
    assert window.words[2] == "it came before an event of event:b"
    assert window.words[4] == "an event of event:b was there before it"


def test_a_first_part_in_the_middle_begins_the_whole_sequence_anew() -> None:
    window = happens(THREE, ("a", 0), ("b", 1), ("a", 2), ("c", 3), ("b", 4), ("c", 5))
    assert runs(window) == [(5, [3, 5, 6])]
    assert window.ends[1] == window.ends[2] == "expired"


# ---------------------------------------------------------------- all_of


BOTH = all_of(A, B, within="10m").settings


@pytest.mark.parametrize("letters", ["ab", "ba"])
def test_all_of_takes_its_parts_in_any_order(letters: str) -> None:
    window = happens(BOTH, *[(letter, at) for at, letter in enumerate(letters)])
    assert runs(window) == [(1, [1, 2])]


def test_all_of_keeps_repeats_and_the_deadline_of_the_first() -> None:
    window = happens(BOTH, ("a", 0), ("a", 300), ("b", 599), ("b", 600), ("a", 601))
    assert runs(window) == [(599, [1, 2, 3]), (601, [4, 5])]
    late = happens(BOTH, ("a", 0), ("a", 300), ("b", 600), ("a", 601))
    assert runs(late) == [(601, [3, 4])]
    assert late.ends[1] == late.ends[2] == "expired"


def test_what_is_missing_at_the_end_is_named() -> None:
    window = happens(all_of(A, B, C, within="10m").settings, ("c", 0), ("a", 1))
    assert window.words[1] == "event:a and event:c came, and event:b did not within 10m"


# ---------------------------------------------------------------- absent


BACKUP = absent(A, "2h", after=B).settings


def test_an_event_that_does_not_come_fires_once() -> None:
    window = happens(BACKUP, ("b", 0), ("b", 60))
    assert runs(window) == [(7200, [1, 2])], "the second one joins and changes no deadline"


def test_an_event_that_comes_in_time_closes_the_window_without_a_run() -> None:
    window = happens(BACKUP, ("b", 0), ("a", 7199), ("a", 7200))
    assert not window.firings
    assert window.words[1] == "an event of event:a came"
    assert window.words[2] == "it came in time"
    assert window.words[3] == "no event of event:b waits for it"


def test_an_event_that_comes_before_the_late_firing_closes_the_window_too() -> None:
    arrived = [Arrived(1, 1, 0), Arrived(2, 0, 7300 * SECOND)]
    assert not play(BACKUP, arrived, rings=[]).firings


def test_without_after_the_time_begins_with_the_service_and_with_each_event() -> None:
    window = ListedWindow(absent(A, "2h").settings)
    window.open_empty(0)
    window.arrive(Arrived(1, 0, 3600 * SECOND))
    assert window.due_at == 3 * 3600 * SECOND
    window.due(window.due_at)
    assert runs(window) == [(3 * 3600, [])]
    assert window.open is None, "it is told once"
    window.arrive(Arrived(2, 0, 4 * 3600 * SECOND))
    assert window.due_at == 6 * 3600 * SECOND


# ---------------------------------------------------------------- what cannot be meant


@flow
async def plain() -> None:
    """Start by hand."""


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda: count(A, 5), 'count(…): say in how much time, count(…, within="10m")'),
        (lambda: sequence(A, B), "sequence(…): say in how much time"),
        (lambda: all_of(A, B), "all_of(…): say in how much time"),
        (lambda: absent(A), "absent(…): say in how much time"),
        (lambda: count(A, 1, "10m"), "count(…, 1, …): every event is one"),
        (lambda: count(A, 0, "10m"), "count(n=0): write a count from 1 to 10,000"),
        (lambda: count(A, 5, "soon"), "count(within='soon'): cannot read the duration"),
        (lambda: count(A, 5, "0s"), "count(within='0s'): a time is above 0"),
        (lambda: count([A, B], 5, "1m"), "count([…]): name one trigger"),  # type: ignore[arg-type]
        (lambda: count(A, 5, "1m", per="user"), "count(per='user'): write a function"),  # type: ignore[arg-type]
        (lambda: sequence(within="1m"), "sequence(): a pattern has two triggers or more"),
        (lambda: sequence(A, within="1m"), "sequence(event:a): a pattern has two triggers or more"),
        (lambda: all_of(within="1m"), "all_of(): a pattern has two triggers or more"),
        (lambda: all_of([A, B], within="1m"), "all_of([…]): write the triggers without brackets"),  # type: ignore[arg-type]
        (lambda: sequence(A, B, A, within="1m"), "each part is a trigger of its own"),
        (
            lambda: all_of(event("order.*"), event("order.paid"), within="1m"),
            "an event could be of both types",
        ),
        (lambda: sequence(A, "b", within="1m"), "sequence('b', …): the first argument is a trig"),  # type: ignore[arg-type]
        (lambda: all_of(A, debounce(B, "1s"), within="1m"), "not of another window"),  # type: ignore[arg-type]
        (lambda: absent(A, "1m", after=A), "absent(event:a, event:a): each part is a trigger"),
        (lambda: absent(A, "1m", after=[B]), "absent([…]): name one trigger"),  # type: ignore[arg-type]
        (
            lambda: sequence(A, B, within="1m", on_timeout="plain"),  # type: ignore[arg-type]
            "sequence(on_timeout='plain'): write a flow",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(write: Callable[[], Any], words: str) -> None:
    with pytest.raises(SetupError) as refused:
        write()
    assert words in str(refused.value)


def test_what_can_be_meant_is_kept() -> None:
    made = sequence(webhook("/o"), event("p"), within="10m", on_timeout=plain)
    assert made.settings.parts == ("webhook:/o", "event:p")
    assert made.settings.on_timeout == "plain"
    assert made.on_timeout is plain
    waits = absent(event("done"), "2h", after=cron("0 3 * * *"))
    assert [each.name for each in waits.triggers] == list(waits.settings.parts)
    assert WindowSettings.from_json(made.settings.to_json()) == made.settings
