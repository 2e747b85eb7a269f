"""The rules of flow control hold together, whatever is done to a service, and whenever.

`--full` plays 5,000 histories with new seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from tests.conftest import Say
from tests.support.dispatch_machine import DRAWN_LIMITS
from tests.support.flow_control_machine import FlowControlMachine, about
from tests.support.histories import booleans, integers, lists, one_of, play, replay, tuples
from turnout.service.dispatch import scheduling
from turnout.service.dispatch.queue import Queue
from turnout.service.dispatch.scheduling import Scheduler
from turnout.service.domain.conditions import Conditions as Asked
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
        play(FlowControlMachine, HISTORIES)
        return
    for number in range(seed, seed + 10):
        say(f"TURNOUT_TEST_SEED={number}")
        play(FlowControlMachine, AT_ONCE, seed=number)


class Noted(FlowControlMachine):
    """A machine that notes what is asked of the journal, and what it answers, in order."""

    notes: ClassVar[list[str]] = []

    def told(self, what: str, call: Any) -> None:
        self.notes.append(f"{what} {call.name} {call.arguments if call.is_read else ''}")
        super().told(what, call)


def test_a_history_has_the_same_effect_each_time() -> None:
    played = []
    for _ in range(2):
        Noted.notes.clear()
        play(Noted, 5)
        played.append(list(Noted.notes))
    assert played[0] == played[1]


# ---------------------------------------------------------------- histories that failed once

FILL = ("fill", {"number": 0, "steps": 0, "order": 0})


def test_a_run_that_waits_to_run_alone_keeps_the_key_of_its_mode() -> None:
    steps = {"steps": 0, "order": 0}
    replay(
        FlowControlMachine,
        {
            "slots": 4,
            "policies": [(False, [("named", 2)], False), (False, [("flow", 1), ("key", 1)], True)],
            "bounds": 4,
            "rules": [
                [("latest", True, 2, 30), ("throttle", True, 2, 30)],
                [("shared", False, 1, 30)],
                [("priority", False, 2, 30)],
            ],
        },
        [
            ("send", {"number": 0, "keys": [(2, 1, True), (0, 2, True)], "again": False, **steps}),
            ("send", {"number": 21, "keys": [(0, 0, False)], "again": False, **steps}),
            ("crash", {}),
            ("crash", {}),
        ],
    )


def test_a_retry_while_its_flow_is_gone_may_not_find_the_class_of_its_key() -> None:
    """Run 9 was retried behind run 10, while its flow was gone and had another name."""
    steps = {"steps": 0, "order": 0}
    replay(
        FlowControlMachine,
        {
            "slots": 3,
            "policies": [(True, [("account", 1)], True), (True, [], False)],
            "bounds": 4,
            "rules": [
                [],
                [
                    ("priority", True, 1, 30),
                    ("rate_limit", False, 1, 30),
                    ("unique", False, 2, 30),
                ],
                [],
            ],
        },
        [
            ("reload", {"number": 0, "change": "count", **steps}),
            FILL,
            ("reload", {"number": 9, "change": "rename", **steps}),
            ("advance", {"seconds": 90, **steps}),
            ("cancel", {"number": 0, **steps}),
            FILL,
            ("lose_connection", {"number": 0, **steps}),
            ("reload", {"number": 59, "change": "serve", **steps}),
            ("advance", {"seconds": 90, **steps}),
            ("retry", {"number": 80, **steps}),
            ("reload", {"number": 41, "change": "serve", **steps}),
            FILL,
        ],
    )


def test_what_is_late_gives_no_turn_of_its_class_away() -> None:
    policies = [
        (False, [], False),
        (False, [("key", 1), ("account", 1)], True),
        (True, [("named", 2)], True),
    ]
    rules = [
        [
            ("rate_limit", True, 2, 5),
            ("start_timeout", True, 1, 30),
            ("priority", False, 2, 5),
        ],
        [("throttle", True, 2, 5), ("max_queued", True, 2, 0), ("skip", True, 1, 5)],
        [("throttle", False, 2, 0), ("needs", True, 1, 0)],
    ]
    replay(
        FlowControlMachine,
        {"slots": 3, "policies": policies, "bounds": 1, "rules": rules},
        [
            FILL,
            ("crash", {}),
            FILL,
            FILL,
            ("lose_connection", {"number": 0, "steps": 0, "order": 0}),
            ("end", {"number": 44, "how": "sleep", "seconds": 1, "steps": 0, "order": 0}),
            ("stop", {"order": 0}),
            FILL,
        ],
    )


def test_a_run_that_resumes_does_not_wait_behind_held_runs_of_its_limit_key() -> None:
    rules = [[("shared", False, 2, 30), ("priority", False, 2, 5)], [], []]
    replay(
        FlowControlMachine,
        {"slots": 3, "policies": [(False, [("key", 1)], False)], "bounds": 3, "rules": rules},
        [
            FILL,
            ("end", {"number": 0, "how": "sleep", "seconds": 1, "steps": 0, "order": 0}),
            ("advance", {"seconds": 1, "steps": 0, "order": 0}),
        ],
    )


def test_a_run_that_is_queued_again_while_due_runs_are_read_starts_once() -> None:
    rest = {"steps": 0, "order": 0}
    once = {"number": 0, "again": False, **rest}
    lost = ("lose_connection", {"number": 0, "steps": 4, "order": 0})
    replay(
        FlowControlMachine,
        {
            "slots": 4,
            "policies": [(True, [], False), (False, [], True)],
            "bounds": 2,
            "rules": [[], [], []],
        },
        [
            ("send", {"keys": [(1, 0, False), (0, 2, True)], **once}),
            ("send", {"keys": [(1, 1, True), (2, 0, False)], **once}),
            ("crash", {}),
            ("send", {"keys": [(0, 0, False)], **once}),
            ("crash", {}),
            ("cancel", {"number": 0, **rest}),
            *[lost] * 3,
            ("advance", {"seconds": 30, "steps": 1, "order": 0}),
            ("retry", {"number": 39, "steps": 0, "order": 202081}),
        ],
    )


def test_a_limit_that_is_lowered_holds_at_once() -> None:
    steps = {"steps": 0, "order": 0}
    replay(
        FlowControlMachine,
        {
            "slots": 2,
            "policies": [(False, [("key", 2)], False)],
            "bounds": 1,
            "rules": [[("max_queued", True, 2, 0)], [], []],
        },
        [
            ("send", {"number": 0, "keys": [(0, 0, False)], "again": False, **steps}),
            ("send", {"number": 0, "keys": [(1, 2, True)], "again": False, **steps}),
            ("cancel", {"number": 0, **steps}),
            FILL,
            ("reload", {"number": 0, "change": "count", "steps": 2, "order": 0}),
            ("lose_connection", {"number": 0, **steps}),
        ],
    )


def test_a_replay_while_the_flow_is_not_served_stays_behind_its_key() -> None:
    steps = {"steps": 0, "order": 0}
    keys = [(1, 1, False), (1, 2, True)]
    rules = [[("priority", True, 1, 0), ("shared", False, 2, 5)], [], []]
    replay(
        FlowControlMachine,
        {"slots": 1, "policies": [(True, [], True)], "bounds": 0, "rules": rules},
        [
            ("send", {"number": 0, "keys": keys, "again": False, **steps}),
            ("end", {"number": 0, "how": "fail", "seconds": 1, **steps}),
            ("reload", {"number": 0, "change": "serve", **steps}),
            ("replay", {"number": 0, **steps}),
        ],
    )


def test_an_event_that_comes_while_two_flows_are_renamed_cancels_the_runs_of_both() -> None:
    steps = {"steps": 0, "order": 0}
    replay(
        FlowControlMachine,
        {
            "slots": 1,
            "policies": [(False, [("account", 1)], False), (False, [("named", 1)], True)],
            "bounds": 5,
            "rules": [[], [("cancel_on", True, 1, 5)], []],
        },
        [
            ("pause", {"number": 1, "pauses": True, **steps}),
            ("send", {"number": 1, "keys": [(0, 0, False)], "again": False, **steps}),
            ("reload", {"number": 0, "change": "rename", **steps}),
            ("reload", {"number": 1, "change": "rename", "steps": 1, "order": 0}),
            ("call_off", {"number": 0, **steps}),
        ],
    )


def test_a_class_whose_flow_is_let_go_run_by_run_misses_no_turn() -> None:
    steps = {"steps": 0, "order": 0}
    replay(
        FlowControlMachine,
        {
            "slots": 4,
            "policies": [
                (True, [("account", 1), ("named", 2)], False),
                (False, [("key", 2)], False),
            ],
            "bounds": 4,
            "rules": [
                [("priority", True, 2, 30)],
                [("needs", False, 1, 5), ("cancel_on", True, 2, 5), ("priority", False, 2, 30)],
                [("max_queued", False, 1, 0)],
            ],
        },
        [
            ("fill", {"number": 95, **steps}),
            ("reload", {"number": 0, "change": "count", **steps}),
            FILL,
            ("reload", {"number": 33, "change": "count", **steps}),
            ("lose_connection", {"number": 37, **steps}),
            ("stop", {"order": 0}),
            ("fill", {"number": 65, **steps}),
        ],
    )


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


def leave_the_key_that_was_given_up(patch: pytest.MonkeyPatch) -> None:
    def asks_the_mode(self: Asked) -> Asked:
        return Asked(mode=self.mode, forced=self.forced)

    patch.setattr(Asked, "of_replay", asks_the_mode)


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


def keep_what_is_cancelled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scheduler, "forget", lambda *_: None)


def offer_a_turn_to_those_that_had_it(patch: pytest.MonkeyPatch) -> None:
    wake = Queue.wake_key
    patch.setattr(Queue, "wake_key", lambda self, key, **_: wake(self, key))


ORDERED = tuples(one_of(True), lists(DRAWN_LIMITS, 0, 1), booleans())
LIMITED = tuples(one_of(False), lists(tuples(one_of("key"), integers(1, 1)), 1, 1), booleans())

CONTROLS = [
    (count_no_starts, about("throttle", "shared"), "in spite of .*throttle"),
    (
        forget_starts_at_a_restart,
        about("throttle", "shared", crash=5, stop=3),
        "in spite of .*throttle",
    ),
    (accept_what_is_over_the_rate, about("rate_limit"), "refused by None, not rate_limit"),
    (accept_what_was_asked_for_before, about("unique"), "refused by None, not unique"),
    (
        leave_the_key_that_was_given_up,
        about("unique", replay=5, send=5, end=5),
        "refused by None, not unique",
    ),
    (ask_no_mode, about("skip", "replace"), "refused by None, not skip|were ended, not"),
    (ask_the_lowest_class_first, about("priority", fill=5, end=10), "takes the turn of class 1"),
    (start_what_is_late, about("start_timeout", fill=3, advance=3), "in spite of .*start_timeout"),
    (cancel_nothing_on_an_event, about("cancel_on", call_off=5), "were ended, not"),
    (take_more_than_the_bound, about("max_queued", fill=3), "is stored, and flow . is full"),
    (start_what_needs_what_is_down, about("needs", lose_connection=5), "in spite of .*needs"),
    (count_no_failures, about("needs", lose_connection=5), "a breaker is closed after"),
    (
        keep_what_is_cancelled,
        about("replace", policies=ORDERED, send=5),
        "could start and does not",
    ),
    (
        offer_a_turn_to_those_that_had_it,
        about("throttle", "priority", policies=LIMITED, fill=5),
        "does not come to rest",
    ),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("broken", "machine", "found"), CONTROLS, ids=[broken.__name__ for broken, *_ in CONTROLS]
)
def test_the_model_finds_a_rule_that_is_broken(
    monkeypatch: pytest.MonkeyPatch, broken: Break, machine: type[FlowControlMachine], found: str
) -> None:
    broken(monkeypatch)
    with pytest.raises(AssertionError, match=found):
        play(machine, HISTORIES, shortens=False)
