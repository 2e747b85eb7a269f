"""Timers whose wall clock is set back or ahead, while they run and over restarts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.trigger_contract import RecordingEmitter
from turnout.service.domain.errors import (
    JournalFull,
)
from turnout.triggers.timers import Timer, at, cron, every

from .virtual_time import (
    DAY,
    HOUR,
    MINUTE,
    START,
    YEAR,
    Wall,
    clock,
    dues,
    passes,
    running,
    virtually,
)


def test_a_clock_set_back_gives_no_tick_twice() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        async with running(every("15m", missed="run_all"), emit):
            await passes(HOUR)  # 10:01
            known = dues(emit)
            assert len(known) == 4
            wall.set_by -= 45 * MINUTE
            await passes(45 * MINUTE)
            assert dues(emit) == known
            assert emit.is_up
            await passes(15 * MINUTE)
            assert dues(emit) == [*known, clock(10, 15)]

    virtually(story)


def test_a_clock_set_far_back_is_reported_and_again_when_it_is_right() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        wall.set_by += 4 * 365 * DAY  # the battery of the clock was empty
        async with running(every("1h"), emit):
            await passes(HOUR)
            assert len(emit.deliveries) == 1
            wall.set_by -= 4 * 365 * DAY
            await passes(timedelta(seconds=31))
            assert not emit.is_up
            assert emit.down_reason is not None and "correct the clock" in emit.down_reason
            assert "turnout trigger seek every:1h --to now" in emit.down_reason
            wall.set_by += 4 * 365 * DAY
            await passes(timedelta(seconds=31))
            assert emit.is_up

    virtually(story)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.integers(0, 5000)),
        st.tuples(st.just("set"), st.integers(-5000, 5000)),
        st.tuples(st.just("restart"), st.integers(0, 5000)),
        st.tuples(st.just("full"), st.integers(0, 500)),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, jitter=st.sampled_from(["0s", "40s"]))
def test_whatever_happens_to_the_clock_each_due_instant_ticks_once(
    steps: list[tuple[Literal["pass", "set", "restart", "full"], int]], jitter: str
) -> None:
    timer = cron(
        "*/7 * * * *", tz="Europe/Berlin", missed="run_all", missed_limit=10_000, jitter=jitter
    )

    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        remaining = list(steps)
        while True:
            async with running(timer, emit):
                while remaining:
                    what, seconds = remaining.pop(0)
                    if what == "restart":
                        break
                    if what == "set":
                        wall.set_by += timedelta(seconds=seconds)
                    if what == "full":
                        emit.fail(JournalFull("disk full"))
                    await passes(timedelta(seconds=abs(seconds)))
                    emit.mend()
                else:
                    await passes(timedelta(seconds=70))
                    break
            await passes(timedelta(seconds=seconds))
        given = {event.time for event in emit.events if event.time > START}
        assert given == set(schedule_until(timer, START, max(given, default=START)))
        if not any(what == "set" and seconds < 0 for what, seconds in steps):
            assert len(emit.deliveries) == len(emit.events), "told twice only by a clock set back"

    virtually(story)


def schedule_until(timer: Timer, after: datetime, end: datetime) -> Iterator[datetime]:
    """Yield what is due after one instant, up to another."""
    while (due := timer.schedule.next_after(after)) is not None and due <= end:
        yield due
        after = due


WRONG = [
    (every("1m", name="t"), timedelta(days=400)),
    (every("1s", name="t"), timedelta(minutes=5)),
    (every("1h", name="t", start="now"), timedelta(days=2)),
    (cron("0 * * * *", name="t", tz="Europe/Berlin"), timedelta(days=400)),
    (cron("0 9 5 * *", name="t"), timedelta(days=100)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("timer", "ahead"), WRONG)
def test_at_a_start_the_clock_is_trusted_and_not_a_tick_far_ahead(
    timer: Timer, ahead: timedelta, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        wall.set_by += ahead
        async with running(timer, emit):
            await passes(2 * HOUR)
        wall.set_by -= ahead
        now, told = wall(), len(emit.deliveries)
        async with running(timer, emit):
            due = timer.schedule.next_after(now)
            assert due is not None
            await passes(due - now + 2 * HOUR)
            assert emit.is_up
        assert now < dues(emit)[told] <= now + max(due - now, HOUR)

    virtually(story)
    assert "timer.resumed_from_clock" in capsys.readouterr().err


def test_an_instant_that_a_wrong_clock_left_out_is_still_to_come() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        timer = at(clock(12))
        wall.set_by += YEAR
        async with running(timer, emit):
            await passes(MINUTE)
        wall.set_by -= YEAR
        async with running(timer, emit):
            await passes(4 * HOUR)
        async with running(timer, emit):
            await passes(4 * HOUR)
        assert dues(emit) == [clock(12)]

    virtually(story)


@pytest.mark.parametrize("back", [timedelta(seconds=2), timedelta(minutes=14)])
def test_a_clock_a_little_back_at_a_start_gives_nothing_twice(back: timedelta) -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        timer = every("15m", missed="run_all")
        async with running(timer, emit):
            await passes(29 * MINUTE + timedelta(seconds=1))  # 9:30:01
        wall.set_by -= back
        async with running(timer, emit):
            await passes(HOUR)
        assert dues(emit) == list(schedule_until(timer, START, clock(10, 15)))

    virtually(story)


def test_a_clock_that_was_behind_at_a_start_owes_what_came_after_the_last_tick() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        timer = every("10m", missed="run_all")
        async with running(timer, emit):
            await passes(HOUR)  # 10:01
        wall.set_by -= 6 * YEAR  # the battery of the clock is empty
        async with running(timer, emit):
            await passes(HOUR)
            wall.set_by += 6 * YEAR  # and NTP sets it right: 11:01
            await passes(HOUR)  # 12:01
        late = [due for due in dues(emit) if due > START]
        assert late == list(schedule_until(timer, START, clock(12)))
        assert "ahead" not in emit.stored_positions

    virtually(story)


def test_a_short_interval_reports_a_clock_set_back_by_minutes() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        async with running(every("1s"), emit):
            await passes(MINUTE)
            wall.set_by -= 5 * MINUTE
            await passes(timedelta(seconds=31))
            assert not emit.is_up
            await passes(5 * MINUTE)
            assert emit.is_up
            assert len(emit.deliveries) == len(emit.events)

    virtually(story)
