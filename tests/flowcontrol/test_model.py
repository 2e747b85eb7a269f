"""Limits, order, modes and rates hold together, whatever is done to a service, and whenever.

`--full` plays 5,000 histories with new seeds.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import Say
from tests.dispatch.test_model import play
from tests.support.flow_control_machine import FlowControlMachine
from turnout.service.flowcontrol.admission import Admission
from turnout.service.flowcontrol.throttle import ThrottleGate
from turnout.service.journal.sqlite import rate_limits
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


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("broken", "found"),
    [
        (count_no_starts, "in spite of .*throttle"),
        (forget_starts_at_a_restart, "in spite of .*throttle"),
        (accept_what_is_over_the_rate, "refused by None, not rate_limit"),
        (accept_what_was_asked_for_before, "refused by None, not unique"),
        (ask_no_mode, "refused by None, not skip|were ended, not"),
    ],
)
def test_the_model_finds_a_rule_that_is_broken(
    monkeypatch: pytest.MonkeyPatch, broken: Break, found: str
) -> None:
    broken(monkeypatch)
    with pytest.raises(AssertionError, match=found):
        play(HISTORIES, shrinks=False, machine=FlowControlMachine)
