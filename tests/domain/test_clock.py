"""The engine's time: the wall clock, but it never goes back and never stands still."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.injected_clock import InjectedClock
from turnout.service.domain.clock import EngineClock, wall_clock
from turnout.service.domain.errors import SetupError
from turnout.service.domain.units import utc_now

START = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
ROUNDING = timedelta(microseconds=2)


class Times:
    """A wall clock and the time that passes, as a test sets them."""

    def __init__(self) -> None:
        self.wall = START
        self.passed = 1000.0

    def passes(self, length: timedelta) -> None:
        self.wall += length
        self.passed += length.total_seconds()

    def clock(self, recorded: datetime | None = None) -> EngineClock:
        return EngineClock(lambda: self.wall, recorded=recorded, elapsed=lambda: self.passed)


SECONDS = st.integers(0, 10**12).map(lambda number: timedelta(microseconds=number))
SETTINGS = st.integers(-(10**12), 10**12).map(lambda number: timedelta(microseconds=number))


@given(st.lists(st.tuples(SECONDS, SETTINGS | st.just(timedelta(0))), max_size=30))
def test_the_engine_time_is_the_later_of_the_wall_clock_and_what_has_passed(
    history: list[tuple[timedelta, timedelta]],
) -> None:
    times = Times()
    clock = times.clock()
    before = clock.now()
    assert abs(before - START) <= ROUNDING
    for passes, is_set in history:
        times.passes(passes)
        times.wall += is_set
        now = clock.now()
        assert abs(now - max(times.wall, before + passes)) <= ROUNDING
        assert now >= before
        before = now


def test_a_clock_that_is_set_back_does_not_stop_the_time() -> None:
    times = Times()
    clock = times.clock()
    times.wall -= HOUR
    times.passes(timedelta(minutes=20))
    assert abs(clock.now() - (START + timedelta(minutes=20))) <= ROUNDING
    assert abs(clock.behind() - HOUR) <= ROUNDING
    times.wall += 2 * HOUR  # now it is ahead
    assert clock.now() == times.wall
    assert clock.behind() == timedelta(0)


def test_a_start_believes_the_wall_clock_whatever_was_recorded() -> None:
    times = Times()
    clock = times.clock(recorded=START + timedelta(days=365))
    assert abs(clock.now() - START) <= ROUNDING
    assert clock.behind() == timedelta(days=365)
    times.passes(timedelta(days=364))
    assert clock.behind() == timedelta(days=1), "it catches up as time passes"


def test_a_step_is_told_once_and_a_drift_never() -> None:
    times = Times()
    clock = times.clock()
    times.passes(HOUR)
    times.wall += timedelta(milliseconds=3)
    assert abs(clock.step()) < timedelta(milliseconds=4)
    times.wall -= HOUR
    assert abs(clock.step() + HOUR) < timedelta(milliseconds=1)
    assert abs(clock.step()) < timedelta(milliseconds=1)
    times.wall += HOUR
    assert abs(clock.step() - HOUR) < timedelta(milliseconds=1)


def test_tests_set_the_wall_clock_of_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wall_clock() is utc_now
    injected = InjectedClock(tmp_path, "+1d")
    for name, value in injected.env.items():
        monkeypatch.setenv(name, value)
    wall = wall_clock()
    assert abs(wall() - utc_now() - timedelta(days=1)) < timedelta(seconds=1)
    injected.set("-1h")
    assert abs(wall() - utc_now() + HOUR) < timedelta(seconds=1)
    injected.set("soon")
    with pytest.raises(SetupError, match=r"holds 'soon'; write it like \+1d or -1h"):
        wall()
