"""Histories are the same each time, and one that fails is shortened and printed to be repeated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from tests.support.histories import (
    Draw,
    Machine,
    action,
    integers,
    lists,
    one_of,
    play,
    play_one,
    replay,
)


class Pile(Machine):
    """Things are put on a pile, and taken from it; it falls when two of them are heavy."""

    played: ClassVar[list[tuple[Any, ...]]] = []
    weights: ClassVar[Mapping[str, float]] = {"put": 3}

    @classmethod
    def beginning(cls) -> Mapping[str, Draw]:
        return {"weights_before": lists(integers(0, 5), 0, 3)}

    def begin(self, weights_before: list[int]) -> None:
        self.pile = list(weights_before)
        self.played.append(("begin", *weights_before))

    @action(weight=integers(0, 9), where=one_of("top", "bottom"))
    def put(self, weight: int, where: str) -> None:
        self.pile.append(weight)
        self.played.append(("put", weight, where))

    @action(lambda self: self.pile)
    def take(self) -> None:
        self.pile.pop()
        self.played.append(("take",))

    def finish(self) -> None:
        heavy = [weight for weight in self.pile if weight == 9]
        assert len(heavy) < 2, f"{len(heavy)} things are heavy"


class Heap(Pile):
    def finish(self) -> None:
        pass


def played_in(number: int, seed: int) -> list[tuple[Any, ...]]:
    Pile.played.clear()
    play_one(Heap, number, seed=seed)
    return list(Pile.played)


def test_a_history_depends_on_its_seed_and_number_alone() -> None:
    third = played_in(3, 7)
    assert len(third) == 31
    play(Heap, 3, seed=1)
    assert played_in(3, 7) == third
    assert played_in(4, 7) != third
    assert played_in(3, 8) != third


def test_what_fails_is_shortened_and_printed_as_a_call_that_repeats_it() -> None:
    with pytest.raises(AssertionError, match=r"(?s)things are heavy.*This is history") as failed:
        play(Pile, 100)
    printed = str(failed.value).partition("it is\n")[2]
    assert printed.count("'put'") == 2
    assert "'take'" not in printed
    assert printed.count("'where': 'top'") == 2, "the simplest"
    with pytest.raises(AssertionError, match=r"^2 things are heavy"):
        eval(printed, {"Pile": Pile, "replay": replay})


def test_an_action_that_is_not_possible_is_left_out_of_a_replay() -> None:
    replay(Pile, {"weights_before": []}, [("take", {})])
