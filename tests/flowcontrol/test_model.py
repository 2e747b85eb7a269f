"""The rules of flow control hold together, whatever is done to a service, and whenever.

`--full` plays 5,000 histories with new seeds.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Say
from tests.dispatch.test_model import play
from tests.support.flow_control_machine import FlowControlMachine
from turnout.service.dispatch import scheduling
from turnout.service.flowcontrol.admission import Admission
from turnout.service.flowcontrol.dependency import Breaker
from turnout.service.flowcontrol.priority import ClassTurns
from turnout.service.flowcontrol.throttle import ThrottleGate
from turnout.service.intake.cancels import CancellingEvents
from turnout.service.journal.sqlite import rate_limits
from turnout.service.journal.sqlite.bounds import Bounds
from turnout.service.journal.sqlite.conditions import Conditions, Verdict

pytestmark = pytest.mark.slow

HISTORIES = 200
AT_ONCE = 500


@pytest.mark.timeout(7200)
def test_flow_control_does_what_its_page_says(full: bool, seed: int, say: Say) -> None:
    if not full:
        play(HISTORIES, machine=FlowControlMachine)
        return
    for number in range(seed, seed + 10):
        say(f"TURNOUT_TEST_SEED={number}")
        play(AT_ONCE, seed=number, machine=FlowControlMachine)


# ---------------------------------------------------------------- negative controls

Break = Callable[[pytest.MonkeyPatch], None]


def count_no_starts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ThrottleGate, "check", lambda *_: None)


def forget_starts_at_a_restart(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Admission, "recall", lambda *_: None)


def accept_what_is_over_the_rate(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rate_limits, "refusal", lambda *_: None)


def accept_what_was_asked_for_before(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Conditions, "_unique", lambda *_: None)


def ask_no_mode(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Conditions, "_mode", lambda *_: Verdict())


def ask_the_lowest_class_first(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ClassTurns, "next", lambda _, ready: max(ready))


def start_what_is_late(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scheduling, "is_late", lambda *_: False)


def cancel_nothing_on_an_event(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CancellingEvents, "add_to", lambda *_: None)


def take_more_than_the_bound(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Bounds, "refuse_full", lambda *_, **__: None)


def start_what_needs_what_is_down(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Breaker, "check", lambda *_: None)


def count_no_failures(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Breaker, "failed", lambda *_: None)


def rare(broken: Break, found: str) -> Any:
    """Return a fault that 200 histories may miss; it is looked for at full size."""
    return pytest.param(broken, found, marks=pytest.mark.full)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("broken", "found"),
    [
        (count_no_starts, "in spite of .*throttle"),
        (forget_starts_at_a_restart, "in spite of .*throttle"),
        (accept_what_is_over_the_rate, "refused by None, not rate_limit"),
        (accept_what_was_asked_for_before, "refused by None, not unique"),
        (ask_no_mode, "refused by None, not skip|were ended, not"),
        rare(ask_the_lowest_class_first, "takes the turn of class 1"),
        (start_what_is_late, "in spite of .*start_timeout"),
        (cancel_nothing_on_an_event, "were ended, not"),
        (take_more_than_the_bound, "is stored, and flow . is full"),
        rare(start_what_needs_what_is_down, "in spite of .*needs"),
        (count_no_failures, "a breaker is closed after"),
    ],
)
def test_the_model_finds_a_rule_that_is_broken(
    monkeypatch: pytest.MonkeyPatch, broken: Break, found: str, full: bool
) -> None:
    broken(monkeypatch)
    seeds = (None, *range(5, 12)) if full else (None,)
    assert any(finds(found, number) for number in seeds), "nothing was noticed"


def finds(fault: str, number: int | None) -> bool:
    """Whether histories of a seed show a fault; another one is for the test above to show."""
    try:
        play(HISTORIES, seed=number, shrinks=False, machine=FlowControlMachine)
    except AssertionError as error:
        return re.search(fault, str(error)) is not None
    return False
