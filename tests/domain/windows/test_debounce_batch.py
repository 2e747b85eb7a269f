"""The rules of debounce and batch, and what an author is told who writes them wrong."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

import pytest

from turnout.service.domain.errors import SetupError
from turnout.service.domain.windows.batch import BatchRule, batch
from turnout.service.domain.windows.debounce import DebounceRule, debounce
from turnout.service.domain.windows.window import (
    AskAgain,
    Fire,
    Join,
    Member,
    OpenWindow,
    WindowSettings,
)
from turnout.triggers.webhook import webhook

SECOND = 1_000_000
HOOK = webhook("/x")


@dataclass
class Listed:
    members: list[Member]

    def parts(self) -> Set[int]:
        return {each.part for each in self.members}

    def count_after(self, at: int) -> int:
        return sum(each.at > at for each in self.members)

    def oldest(self) -> int | None:
        return min((each.at for each in self.members), default=None)


def window(settings: WindowSettings, due_at: int, *members: Member) -> OpenWindow:
    return OpenWindow(
        settings=settings,
        opened_at=members[0].at,
        due_at=due_at,
        count=len(members),
        bytes=sum(each.bytes for each in members),
        members=Listed([*members]),
    )


def test_each_event_puts_the_deadline_of_a_debounce_off_but_never_past_its_longest() -> None:
    settings = debounce(HOOK, "5s", max="12s").settings
    rule, first = DebounceRule(), Member(0, 100 * SECOND, 10)
    assert rule.arrive(settings, None, first) == (Join(105 * SECOND),)
    opened = window(settings, 105 * SECOND, first)
    assert rule.arrive(settings, opened, Member(0, 104 * SECOND, 1)) == (Join(109 * SECOND),)
    assert rule.arrive(settings, opened, Member(0, 111 * SECOND, 1)) == (Join(112 * SECOND),)
    assert rule.due(settings, opened, 112 * SECOND) == (Fire(),)


def test_a_debounce_is_put_off_ten_periods_at_the_most_unless_max_says_otherwise() -> None:
    assert debounce(HOOK, "5s").settings.longest == 50 * SECOND


def test_the_first_member_of_a_batch_sets_its_deadline_and_the_last_one_fires_it() -> None:
    settings = batch(HOOK, 3, "10s").settings
    rule, first = BatchRule(), Member(0, SECOND, 10)
    assert rule.arrive(settings, None, first) == (Join(11 * SECOND),)
    opened = window(settings, 11 * SECOND, first, Member(0, 2 * SECOND, 1))
    assert rule.arrive(settings, opened, Member(0, 3 * SECOND, 1)) == (Join(11 * SECOND), Fire())
    assert rule.due(settings, opened, 11 * SECOND) == (Fire(),)


def test_a_member_that_would_make_a_batch_too_large_opens_the_next_one() -> None:
    settings, rule = batch(HOOK, 100, "10s", max_bytes=10).settings, BatchRule()
    opened = window(settings, 11 * SECOND, Member(0, SECOND, 6))
    assert rule.arrive(settings, opened, Member(0, SECOND, 5)) == (Fire(), AskAgain())
    assert rule.arrive(settings, None, Member(0, SECOND, 11)) == (Join(11 * SECOND), Fire())


@pytest.mark.parametrize("size", [1, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_quick_answer_of_a_batch_is_that_of_its_rule(count: int, size: int) -> None:
    settings = batch(HOOK, 4, "10s", max_bytes=10).settings
    first = [Member(0, SECOND, 6), *[Member(0, SECOND, 0)] * (count - 1)]
    steps = BatchRule().arrive(settings, window(settings, 11 * SECOND, *first), Member(0, 9, size))
    assert BatchRule.only_join(settings, count, 6, [size]) == (steps == (Join(11 * SECOND),))


@pytest.mark.parametrize("sizes", [[1, 1, 1], [1, 1, 1, 1], [1, 3], [4], [0] * 9, [1, 9, 1], []])
def test_of_several_events_as_many_join_as_one_by_one(sizes: list[int]) -> None:
    settings = batch(HOOK, 6, "10s", max_bytes=10).settings
    count, size, joined = 1, 6, 0
    while joined < len(sizes) and BatchRule.only_join(settings, count, size, [sizes[joined]]):
        count, size, joined = count + 1, size + sizes[joined], joined + 1
    assert BatchRule.only_join(settings, 1, 6, sizes) == joined


def test_a_batch_of_one_runs_at_once() -> None:
    settings = batch(HOOK, 1, "10s").settings
    assert BatchRule().arrive(settings, None, Member(0, 0, 1)) == (Join(10 * SECOND), Fire())


def test_settings_are_the_same_after_they_were_text() -> None:
    settings = debounce(HOOK, "5s", keep="all").settings
    assert WindowSettings.from_json(settings.to_json()) == settings


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda: debounce("x", "5s"), "debounce('x', …): the first argument is a trigger"),  # type: ignore[arg-type]
        (lambda: debounce(debounce(HOOK, "1s"), "5s"), "not of another window"),  # type: ignore[arg-type]
        (lambda: debounce([HOOK], "5s"), "debounce([…]): name one trigger"),  # type: ignore[arg-type]
        (lambda: debounce(HOOK, "soon"), "debounce(period='soon'): cannot read the duration"),
        (lambda: debounce(HOOK, "0s"), "debounce(period='0s'): a time is above 0"),
        (lambda: debounce(HOOK, "5s", max="5s"), "max is longer than the period"),
        (lambda: debounce(HOOK, "5s", keep="first"), 'write keep="last" or keep="all"'),  # type: ignore[arg-type]
        (lambda: debounce(HOOK, "5s", per="user"), "debounce(per='user'): write a function"),  # type: ignore[arg-type]
        (lambda: batch(HOOK, 0, "5s"), "batch(n=0): write a count from 1 to 10,000"),
        (lambda: batch(HOOK, 10_001, "5s"), "write a count from 1 to 10,000"),
        (lambda: batch(HOOK, 5, "x"), "batch(timeout='x'): cannot read the duration"),
        (lambda: batch(HOOK, 5, "1s", max_bytes="5MiB"), "4 MiB at most"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(write: Any, words: str) -> None:
    with pytest.raises(SetupError) as refused:
        write()
    assert words in str(refused.value)
