"""Windows of all kinds start what hindsight says, whatever is done to a service, and whenever.

`--full` plays 5,000 histories with new seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from tests.conftest import Say
from tests.support.histories import Draw, lists, one_of, play
from tests.support.inside import keep_windows_ahead
from tests.support.window_machine import WindowMachine
from turnout.service.domain.windows.sequence import SequenceRule
from turnout.service.domain.windows.window import Join, Member, OpenWindow, Step, WindowSettings
from turnout.service.intake import absence
from turnout.service.intake.windows import WindowDeadlines

pytestmark = pytest.mark.slow

COUNT = 200
LENGTH = 20
AT_ONCE = 500


@pytest.mark.timeout(7200)
def test_windows_start_what_hindsight_says(full: bool, seed: int, say: Say) -> None:
    if not full:
        play(WindowMachine, COUNT, length=LENGTH)
        return
    for number in range(seed, seed + 10):
        say(f"TURNOUT_TEST_SEED={number}")
        play(WindowMachine, AT_ONCE, seed=number, length=LENGTH)


# ---------------------------------------------------------------- negative controls

Break = Callable[[pytest.MonkeyPatch], None]


def keep_the_older_first_part(patch: pytest.MonkeyPatch) -> None:
    right = SequenceRule.arrive

    def keep(
        rule: SequenceRule, settings: WindowSettings, window: OpenWindow | None, member: Member
    ) -> Sequence[Step]:
        if member.part == 0 and window is not None:
            return (Join(window.due_at),)
        return right(rule, settings, window, member)

    patch.setattr(SequenceRule, "arrive", keep)


def never_look_at_a_deadline_after_a_start(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WindowDeadlines, "recheck", lambda _: None)


def give_senders_no_time_to_come_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(absence, "SENDERS_RETURN", absence.SENDERS_RETURN * 0)


def leave_windows_as_a_clock_that_was_ahead_has_opened_them(patch: pytest.MonkeyPatch) -> None:
    keep_windows_ahead(patch)


class Rows(WindowMachine):
    """Only sequences get events."""

    @classmethod
    def beginning(cls) -> Mapping[str, Draw]:
        return {"kinds": lists(one_of("row"), 1, 1)}


class Silences(WindowMachine):
    """Only absences get events."""

    @classmethod
    def beginning(cls) -> Mapping[str, Draw]:
        return {"kinds": lists(one_of("quiet", "beat"), 1, 2)}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("broken", "machine", "found"),
    [
        (keep_the_older_first_part, Rows, "row: "),
        (never_look_at_a_deadline_after_a_start, WindowMachine, "still open: "),
        (give_senders_no_time_to_come_again, Silences, "quiet: |beat: "),
        (
            leave_windows_as_a_clock_that_was_ahead_has_opened_them,
            WindowMachine,
            "still open: ",
        ),
    ],
)
def test_the_model_finds_a_window_that_is_broken(
    monkeypatch: pytest.MonkeyPatch, broken: Break, machine: type[WindowMachine], found: str
) -> None:
    broken(monkeypatch)
    with pytest.raises(AssertionError, match=found):
        play(machine, COUNT, length=LENGTH, shortens=False)
