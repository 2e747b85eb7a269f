"""Ticks that nobody could take when they were due: after a stop, in a pause, on a full disk."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.trigger_contract import RecordingEmitter
from turnout.service.domain.errors import (
    JournalBroken,
    JournalFull,
    Overloaded,
    Paused,
    TriggerError,
)
from turnout.triggers.missed_ticks import Due, Missed, decide
from turnout.triggers.timers import cron, every

from .virtual_time import (
    DAY,
    HOUR,
    MINUTE,
    START,
    YEAR,
    Wall,
    clock,
    dues,
    missed,
    passes,
    running,
    virtually,
)

# ---------------------------------------------------------------- missed ticks

POLICIES: list[tuple[Missed, list[datetime], list[int], int]] = [
    # 10:00 to 14:00 came due while nobody watched; it is 14:31 at the restart
    ("run_once", [clock(14)], [5], 4),
    ("skip", [], [], 5),
    ("run_all", [clock(hour) for hour in (12, 13, 14)], [1, 1, 1], 2),
]


@pytest.mark.parametrize(("policy", "emitted", "stands_for", "dropped"), POLICIES)
@pytest.mark.parametrize("cause", ["stopped", "clock set forward"])
def test_missed_ticks_follow_the_policy(
    policy: Missed, emitted: list[datetime], stands_for: list[int], dropped: int, cause: str
) -> None:
    timer = every("1h", missed=policy, missed_limit=3)

    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        async with running(timer, emit):
            await passes(MINUTE)
            if cause == "clock set forward":
                wall.set_by += 5 * HOUR + 29 * MINUTE
                await passes(timedelta(seconds=31))
        if cause == "stopped":
            wall.set_by += 5 * HOUR + 29 * MINUTE
        async with running(timer, emit):
            await passes(timedelta(seconds=31))
            assert dues(emit) == emitted
            assert [missed(event) for event in emit.events] == stands_for
            assert emit.rejected["missed"] == dropped
            assert emit.late_seconds == [
                pytest.approx((wall() - due).total_seconds(), abs=63) for due in emitted
            ]
            await passes(HOUR)
            assert dues(emit) == [*emitted, clock(15)]
            assert missed(emit.events[-1]) == 0

    virtually(story)


def test_a_tick_less_than_a_minute_late_is_on_time() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        timer = cron("0 10 * * *", missed="skip")
        async with running(timer, emit):
            await passes(MINUTE)
        wall.set_by += 58 * MINUTE + timedelta(seconds=50)  # 10:00:50
        async with running(timer, emit):
            await passes(MINUTE)
        assert dues(emit) == [clock(10)]
        assert missed(emit.events[0]) == 0
        assert emit.rejected["missed"] == 0

    virtually(story)


@given(
    count=st.integers(1, 50),
    latest_on_time=st.booleans(),
    policy=st.sampled_from(["run_once", "skip", "run_all"]),
    limit=st.integers(1, 60),
)
def test_every_due_instant_is_emitted_stood_for_or_counted(
    count: int, latest_on_time: bool, policy: Missed, limit: int
) -> None:
    instants = [START + n * HOUR for n in range(count)]
    due = Due(count, instants[-(limit + 1) :])
    ticks = decide(due, latest_on_time=latest_on_time, missed=policy, limit=limit)
    assert len(ticks.emitted) + ticks.dropped == count
    assert [instant for instant, _ in ticks.emitted] == instants[count - len(ticks.emitted) :]
    if latest_on_time:
        assert ticks.emitted[-1][0] == instants[-1]
    assert len(ticks.emitted) <= (limit + 1 if policy == "run_all" else 1)


async def test_counting_thousands_of_missed_ticks_gives_way_to_other_work() -> None:
    now = START
    emit = RecordingEmitter(lambda: now)
    emit.stored_positions["tick"] = (now - 3 * HOUR).isoformat()
    turns = 0
    async with asyncio.TaskGroup() as group:
        task = group.create_task(cron("* * * * * *").run(emit))
        while not emit.events:
            await asyncio.sleep(0)
            turns += 1
        task.cancel()
    assert turns > 100
    assert missed(emit.events[0]) == emit.rejected["missed"] == 3 * 3600 - 1


@pytest.mark.parametrize(("policy", "given"), [("run_once", 1), ("skip", 1), ("run_all", 101)])
def test_a_clock_set_right_by_decades_counts_its_intervals_at_once(
    policy: Missed, given: int
) -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        wall.set_by -= 50 * YEAR
        async with running(every("100ms", missed=policy, jitter="50ms"), emit):
            await passes(timedelta(seconds=1))
            before, began = len(emit.events), time.monotonic()
            wall.set_by += 50 * YEAR
            await passes(timedelta(seconds=0.2))
            assert time.monotonic() - began < 5
            late = [event for event in emit.events[before:] if event.time > START - DAY]
            assert given <= len(late) <= given + 2
            assert late[given - 1].time <= wall()
        counted = emit.rejected["missed"] + sum(missed(event) for event in emit.events)
        assert counted >= 50 * 365 * 86400 * 10 - 10

    virtually(story)


# ---------------------------------------------------------------- a journal on a full disk


def test_a_tick_is_tried_until_it_is_stored_then_the_rest_is_missed() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        async with running(every("10m", missed="run_once"), emit):
            await passes(5 * MINUTE)  # 9:06
            emit.fail(JournalFull("disk full"))
            await passes(41 * MINUTE)  # 9:47: 9:10 is being tried; 9:20, 9:30, 9:40 came due
            assert not emit.events
            assert emit.lags["tick"] == 1
            assert 60 < emit.refused < 600, "backs off, but never longer than five seconds"
            emit.mend()
            await passes(timedelta(seconds=6))
            assert dues(emit) == [clock(9, 10), clock(9, 40)]
            assert [missed(event) for event in emit.events] == [0, 3]
            assert emit.lags["tick"] == 0

    virtually(story)


@pytest.mark.parametrize(
    ("policy", "ticks"),
    [
        ("run_once", [(clock(9, 40), 4)]),
        ("skip", []),
        ("run_all", [(clock(9, 10), 1), (clock(9, 20), 1), (clock(9, 30), 1), (clock(9, 40), 1)]),
    ],
)
def test_ticks_of_a_paused_timer_are_missed(
    policy: Missed, ticks: list[tuple[datetime, int]]
) -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        async with running(every("10m", missed=policy), emit):
            await passes(5 * MINUTE)  # 9:06
            emit.fail(Paused("an operator has paused it"))
            await passes(41 * MINUTE)  # 9:47
            assert not emit.events
            emit.mend()
            await passes(timedelta(seconds=6))
            assert [(event.time, missed(event)) for event in emit.events] == ticks
            await passes(5 * MINUTE)
            assert dues(emit)[-1] == clock(9, 50)

    virtually(story)


def test_a_tick_that_comes_due_in_a_short_pause_is_on_time() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        async with running(every("10m", missed="skip"), emit):
            await passes(8 * MINUTE)  # 9:09
            emit.fail(Paused("an operator has paused it"))
            await passes(1.5 * MINUTE)  # 9:10:30
            emit.mend()
            await passes(timedelta(seconds=6))
            assert dues(emit) == [clock(9, 10)]

    virtually(story)


def test_a_first_start_waits_for_room_and_is_not_up_before() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        emit.fail(Overloaded("too many unfinished runs"))
        async with running(every("1h"), emit):
            await passes(MINUTE)
            assert not emit.is_up
            emit.mend()
            await passes(MINUTE)
            assert emit.is_up

    virtually(story)


def test_a_broken_journal_ends_the_run() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        emit.fail(JournalBroken("fsync failed"))
        with pytest.raises(JournalBroken):
            await every("1h").run(emit)

    virtually(story)


@pytest.mark.parametrize("stored", ["garbage", "2026-03-02T09:00:00", "0001-01-01T00:00+09:00"])
def test_a_position_that_is_no_instant_is_named(stored: str) -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        emit.stored_positions["tick"] = stored
        with pytest.raises(TriggerError, match=rf"every:1h.*'{re.escape(stored)}'"):
            await every("1h").run(emit)

    virtually(story)
