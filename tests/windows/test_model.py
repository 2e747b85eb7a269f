"""Windows of all kinds start what hindsight says, whatever is done to a service, and whenever.

`--full` plays 5,000 histories with new seeds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed

from tests.conftest import Say
from tests.support.window_machine import HISTORIES, Action, WindowHistory
from turnout.service.domain.windows.sequence import SequenceRule
from turnout.service.domain.windows.window import Join, Member, OpenWindow, Step, WindowSettings
from turnout.service.intake import absence
from turnout.service.intake.windows import WindowDeadlines

pytestmark = pytest.mark.slow

COUNT = 200
AT_ONCE = 500


def play(count: int, *, seed: int | None = None, shrinks: bool = True) -> None:
    """Play histories: always the same ones, or those of a seed."""

    @settings(
        max_examples=count,
        derandomize=seed is None,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink] if shrinks else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(HISTORIES)
    def history(drawn: tuple[list[str], list[Action]]) -> None:
        kinds, actions = drawn
        with tempfile.TemporaryDirectory(dir=_memory()) as folder:
            WindowHistory(Path(folder), kinds).play(actions)

    (history if seed is None else with_seed(seed)(history))()


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@pytest.mark.timeout(7200)
def test_windows_start_what_hindsight_says(full: bool, seed: int, say: Say) -> None:
    if not full:
        play(COUNT)
        return
    for number in range(seed, seed + 10):
        say(f"TURNOUT_TEST_SEED={number}")
        play(AT_ONCE, seed=number)


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


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("broken", "found"),
    [
        (keep_the_older_first_part, "row: "),
        (never_look_at_a_deadline_after_a_start, "still open: "),
        (give_senders_no_time_to_come_again, "quiet: |beat: "),
    ],
)
def test_the_model_finds_a_window_that_is_broken(
    monkeypatch: pytest.MonkeyPatch, broken: Break, found: str
) -> None:
    broken(monkeypatch)
    with pytest.raises(AssertionError, match=found):
        play(COUNT, shrinks=False)
