"""Every start of a run is as promised, whatever is done to a service, and whenever.

`--full` plays 20,000 histories with new seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Say
from tests.support.dispatch_machine import DispatchMachine
from tests.support.histories import play, replay
from turnout.service.dispatch.dispatcher import Dispatcher
from turnout.service.dispatch.queue import Queue
from turnout.service.flowcontrol.limit import KeyLimit
from turnout.service.flowcontrol.order import Order
from turnout.service.journal.sqlite.append import Intake
from turnout.service.operate.parts import Parts

pytestmark = pytest.mark.slow

HISTORIES = 300
AT_ONCE = 1000


@pytest.mark.timeout(7200)
def test_every_start_is_as_promised(full: bool, seed: int, say: Say) -> None:
    if not full:
        play(DispatchMachine, HISTORIES)
        return
    for number in range(seed, seed + 20):
        say(f"TURNOUT_TEST_SEED={number}")
        play(DispatchMachine, AT_ONCE, seed=number)


def test_a_retry_whose_turn_it_is_keeps_it_when_its_flow_is_renamed() -> None:
    steps = {"steps": 0, "order": 0}
    more = [(2, 2, False), (0, 1, True), (1, 0, True)]
    replay(
        DispatchMachine,
        {"slots": 4, "policies": [(False, [], True)], "bounds": 4},
        [
            ("send", {"number": 0, "keys": [(2, 0, True), (0, 1, False)], "again": False, **steps}),
            ("end", {"number": 0, "how": "retry", "seconds": 1, **steps}),
            ("send", {"number": 0, "keys": more, "again": False, **steps}),
            ("send", {"number": 0, "keys": [(1, 2, True), (2, 0, True)], "again": False, **steps}),
            ("advance", {"seconds": 1, **steps}),
            ("cancel", {"number": 46, **steps}),
            ("cancel", {"number": 14, **steps}),
            ("reload", {"number": 0, "change": "rename", **steps}),
        ],
    )


def test_a_run_that_is_cancelled_while_its_queue_is_read_blocks_its_key_no_more() -> None:
    """Run 4 waits to run alone, others behind its key; a reload reads it, and it is cancelled."""
    steps, key = {"steps": 0, "order": 0}, [(0, 0, False)]
    send = ("send", {"number": 0, "keys": key, "again": False, **steps})
    more = [(1, 2, True), (2, 1, True), (0, 1, True)]
    replay(
        DispatchMachine,
        {"slots": 4, "policies": [(True, [], True)], "bounds": 0},
        [
            ("send", {"number": 0, "keys": [(1, 1, True)], "again": False, **steps}),
            ("send", {"number": 0, "keys": more, "again": False, **steps}),
            send,
            ("crash", {}),
            send,
            ("crash", {}),
            send,
            send,
            ("cancel", {"number": 0, **steps}),
            ("reload", {"number": 0, "change": "count", "steps": 4, "order": 0}),
            ("cancel", {"number": 86, "steps": 4, "order": 0}),
            ("send", {"number": 0, "keys": key, "again": False, "steps": 0, "order": 862878}),
        ],
    )


def test_retries_that_are_due_at_one_instant_go_by_their_number() -> None:
    """Run 1 was queued again behind run 2, but both are due again since the same instant."""
    steps = {"steps": 0, "order": 0}
    replay(
        DispatchMachine,
        {"slots": 1, "policies": [(True, [], False)], "bounds": 0},
        [
            (
                "send",
                {"number": 0, "keys": [(1, 0, False), (0, 0, False)], "again": False, **steps},
            ),
            ("cancel", {"number": 0, **steps}),
            ("retry", {"number": 0, **steps}),
            ("send", {"number": 0, "keys": [(2, 0, False)], "again": False, **steps}),
            ("end", {"number": 0, "how": "retry", "seconds": 1, **steps}),
            ("end", {"number": 0, "how": "retry", "seconds": 1, **steps}),
            ("advance", {"seconds": 1, **steps}),
            ("end", {"number": 0, "how": "succeed", "seconds": 1, **steps}),
        ],
    )


# ---------------------------------------------------------------- negative controls

Break = Callable[[pytest.MonkeyPatch], None]


def release_keys_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Order, "suspend", Order.leave)  # a run that waits for its next try keeps its key


def lose_wakeups(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Queue, "wake_next", lambda *_: None)


def keep_slots(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dispatcher, "take_back", lambda *_: None)


def ignore_pauses(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dispatcher, "pause", lambda *_: None)


def count_keys_twice(patch: pytest.MonkeyPatch) -> None:
    enter = KeyLimit.enter

    def enter_twice(self: KeyLimit, *entered: Any) -> None:
        enter(self, *entered)
        enter(self, *entered)

    patch.setattr(KeyLimit, "enter", enter_twice)


def let_newer_runs_pass(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Order, "check", lambda *_: None)  # a key is open though an older run holds it


def queue_again_in_its_place(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Intake, "next_arrival", lambda *_: None)  # an operator's retry


def give_up_the_place_of_a_blocking_head(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Parts, "may_block", lambda *_: False)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("broken", "found"),
    [
        (release_keys_early, r"does not hold its key|in spite of \['order"),
        (lose_wakeups, "could start and does not"),
        (keep_slots, "slots, not"),
        (ignore_pauses, "which is paused|in spite of .*stopped"),
        (count_keys_twice, "could start and does not|overtakes|counts .* slots"),
        (let_newer_runs_pass, "in spite of .*order"),
        (queue_again_in_its_place, "in spite of .*order|overtakes"),
        (give_up_the_place_of_a_blocking_head, "in spite of .*order|overtakes"),
    ],
)
def test_the_model_finds_what_is_broken(
    monkeypatch: pytest.MonkeyPatch, broken: Break, found: str
) -> None:
    broken(monkeypatch)
    with pytest.raises(AssertionError, match=found):
        play(DispatchMachine, HISTORIES, shortens=False)
