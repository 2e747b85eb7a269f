"""One table owns the states; an illegal move says what, from where, and what is allowed."""

from __future__ import annotations

from itertools import product

import pytest

from turnout.service.domain.errors import Refused
from turnout.service.domain.run import FINISHED, TRANSITIONS, UNFINISHED, RunState, check_transition


def test_every_state_is_in_the_table_and_can_be_reached() -> None:
    assert set(TRANSITIONS) == {None, *RunState}
    reached = set().union(*TRANSITIONS.values())
    assert reached == set(RunState)
    assert set(RunState) == UNFINISHED | FINISHED


def test_only_an_operator_leaves_an_end_and_only_to_the_queue() -> None:
    for state in FINISHED:
        assert TRANSITIONS[state] == {RunState.QUEUED}


def test_moves_outside_the_table_are_refused_by_name() -> None:
    for current, target in product([None, *RunState], RunState):
        if target in TRANSITIONS[current]:
            check_transition("r1", current, target)
        else:
            with pytest.raises(Refused, match=f"r1 is {current or 'new'}.*{target}"):
                check_transition("r1", current, target)
