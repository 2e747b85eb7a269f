"""Timers on a virtual clock: hours pass at once, and the wall clock can be set while they do."""

from __future__ import annotations

import asyncio
import re
import selectors
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.trigger_contract import RecordingEmitter, TriggerCase, TriggerContract, watch
from turnout.service.domain.errors import (
    JournalBroken,
    JournalFull,
    Overloaded,
    Paused,
    Refused,
    SetupError,
    TriggerError,
)
from turnout.service.domain.event import Event
from turnout.service.domain.trigger import ReadTrigger, Receipt, Seek
from turnout.service.journal.contract import Journal
from turnout.service.journal.open import open_journal
from turnout.service.journal.records import Appended, Entry, Move
from turnout.service.telemetry.metrics import Metrics
from turnout.triggers.calendar import load_zone
from turnout.triggers.missed_ticks import Due, Missed, decide
from turnout.triggers.timers import Timer, at, cron, every

load_zone("UTC")  # as a service does before its loop runs: it reads a file

START = datetime(2026, 3, 2, 9, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
YEAR = 365 * DAY


# ---------------------------------------------------------------- virtual time


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        self.elapsed_seconds = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.elapsed_seconds


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "nothing would ever happen again"
        self._loop.elapsed_seconds += max(timeout, 0)
        return super().select(0)


class Wall:
    """A wall clock that runs with the loop's and can be set."""

    def __init__(self) -> None:
        self.set_by = timedelta(0)
        self.looks = 0

    def __call__(self) -> datetime:
        self.looks += 1
        return START + self.set_by + timedelta(seconds=asyncio.get_running_loop().time())


def virtually(story: Callable[[Wall, RecordingEmitter], Coroutine[Any, Any, None]]) -> None:
    wall = Wall()
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(story(wall, RecordingEmitter(wall)))


async def passes(time: timedelta) -> None:
    """Let virtual time pass."""
    await asyncio.sleep(time.total_seconds())


@asynccontextmanager
async def running(timer: Timer, emit: RecordingEmitter) -> AsyncIterator[None]:
    async with watch(timer, emit):
        yield


def dues(emit: RecordingEmitter) -> list[datetime]:
    return [event.time for event in emit.deliveries]


def missed(event: Event) -> int:
    return int(event.extensions.get("missed", "0"))


def clock(hour: int, minute: int = 0) -> datetime:
    return START.replace(hour=hour, minute=minute)


# ---------------------------------------------------------------- a tick


def test_a_tick_is_an_event_with_a_stable_identity() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        async with running(cron("*/15 * * * *", tz="Europe/Berlin"), emit):
            await passes(HOUR)
        assert dues(emit) == [clock(9, 15), clock(9, 30), clock(9, 45), clock(10)]
        event = emit.events[0]
        assert event.data == {"due": "2026-03-02T09:15:00Z"}
        assert event.type == "turnout.timer.tick"
        assert event.source == "turnout:timers/cron%3A%2A%2F15%20%2A%20%2A%20%2A%20%2A"
        assert event.id.startswith("cron-") and event.id.endswith("-20260302T091500Z")
        assert event.trigger == "cron:*/15 * * * *"
        assert event.extensions == {}
        assert not event.minted
        assert emit.stored_positions["tick"] == "2026-03-02T10:00:00Z"

    virtually(story)


def test_ticks_come_at_their_instant_and_waiting_costs_next_to_nothing() -> None:
    emitted_at: list[datetime] = []

    class Noting(RecordingEmitter):
        async def __call__(self, *arguments: Any, **more: Any) -> Any:
            emitted_at.append(self.now())
            return await super().__call__(*arguments, **more)

    async def story(wall: Wall, _: RecordingEmitter) -> None:
        emit = Noting(wall)
        async with running(every("1h"), emit):
            emitted_at.clear()
            wall.looks = 0
            await passes(10 * HOUR)
        assert wall.looks < 10 * 3600 / 15 + 50, "looks about twice in half a minute"
        late = [at - due for at, due in zip(emitted_at, dues(emit), strict=True)]
        assert len(late) == 10
        assert all(timedelta(0) <= lateness < timedelta(milliseconds=1) for lateness in late)

    virtually(story)


def test_the_first_start_owes_nothing_for_the_time_before() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        async with running(every("1h", missed="run_all"), emit):
            await passes(30 * MINUTE)
            assert emit.is_up
        assert not emit.events
        assert emit.stored_positions["tick"] == "2026-03-02T09:01:00Z"

    virtually(story)


def test_a_tick_missed_right_after_the_first_start_is_owed() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        async with running(cron("0 12 * * *"), emit):
            await passes(MINUTE)
        wall.set_by += 5 * HOUR
        async with running(cron("0 12 * * *"), emit):
            await passes(MINUTE)
        assert dues(emit) == [clock(12)]
        assert missed(emit.events[0]) == 1

    virtually(story)


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


# ---------------------------------------------------------------- clocks set back, restarts


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


# ---------------------------------------------------------------- another schedule


DAILY = cron("0 8 * * *", name="x", missed="run_all")


@pytest.mark.parametrize(
    "changed",
    [
        cron("* * * * *", name="x", missed="run_all"),
        cron("0 8 * * *", name="x", missed="run_all", tz="Asia/Tokyo"),
        every("1m", name="x", missed="run_all"),
        every("10m", name="x", start="2026-03-02T09:05Z", missed="run_all"),
        every("10m", name="x", start="now", missed="run_all"),
        at(clock(10), name="x"),
    ],
)
@pytest.mark.parametrize("first", [DAILY, every("10m", name="x")])
def test_a_changed_schedule_owes_nothing_for_the_time_before(first: Timer, changed: Timer) -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        async with running(first, emit):
            await passes(MINUTE)
        await passes(2 * HOUR)
        now = wall()
        async with running(changed, emit):
            await passes(30 * MINUTE)
        assert all(due > now for due in dues(emit)[len(emit.deliveries) :])
        assert not [event for event in emit.events if missed(event)]

    virtually(story)


def test_other_settings_than_the_schedule_forgive_nothing() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        async with running(every("10m", name="x"), emit):
            await passes(MINUTE)
        await passes(HOUR)
        async with running(every("10m", name="x", missed="run_all", jitter="1s"), emit):
            await passes(MINUTE)
        assert len(emit.events) == 6

    virtually(story)


def test_a_journal_from_before_schedules_were_stored_owes_what_it_owed() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        emit.stored_positions["tick"] = "2026-03-02T08:00:00Z"
        async with running(every("10m", name="x", missed="run_all"), emit):
            await passes(MINUTE)
        assert len(emit.events) == 6

    virtually(story)


# ---------------------------------------------------------------- an operator's seek


NOW = datetime(2026, 3, 2, 9, 1, tzinfo=UTC)


async def sought(to: str, tick: str | None, **wish: Any) -> str | None:
    positions = {} if tick is None else {"tick": tick}
    plan = await every("1m").plan(Seek(to=to, asked_at=NOW, **wish), positions, {})
    return plan.positions["tick"]


async def test_seek_takes_a_timer_to_the_clock_or_forgives_what_is_due() -> None:
    now = "2026-03-02T09:01:00Z"
    assert await sought(NOW.isoformat(), "2028-01-01T00:00:00Z") == now
    assert await sought(NOW.isoformat(), "2026-03-02T07:00:00Z") == now
    assert await sought(NOW.isoformat(), None) == now
    assert await sought("2026-03-02T09:00+01:00", "2026-03-02T07:00:00Z") == "2026-03-02T08:00:00Z"


@pytest.mark.parametrize(
    ("to", "wish"),
    [
        ("2026-03-02T10:00:00Z", {}),
        ("2026-03-02T06:00:00Z", {}),
        ("2026-03-02T06:00:00Z", {"rerun": True}),
        ("2026-03-02T08:30:00", {}),
        ("start", {}),
        ("end", {}),
        ("17", {}),
        ("0001-01-01T00:00:00+09:00", {}),
        ("9999-12-31T23:59:59-05:00", {}),
        ("2026-03-02T08:30:00Z", {"partition": "0"}),
    ],
)
async def test_seek_refuses_to_tick_twice_or_ahead(to: str, wish: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        await sought(to, "2026-03-02T08:00:00Z", **wish)


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


# ---------------------------------------------------------------- from start, once, jitter


def test_an_interval_from_the_start_keeps_its_phase_over_restarts() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        timer = every("1h", start="now")
        async with running(timer, emit):
            await passes(timedelta(hours=1, minutes=10))
        assert dues(emit) == [clock(10, 1)]
        async with running(timer, emit):
            await passes(HOUR)
        assert dues(emit) == [clock(10, 1), clock(11, 1)]
        assert emit.stored_positions["start"] == "2026-03-02T09:01:00Z"

    virtually(story)


def test_at_ticks_once_and_never_again() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        timer = at("2026-03-02T11:00", tz="Europe/Berlin")
        async with running(timer, emit):
            await passes(2 * HOUR)
        async with running(timer, emit):
            await passes(DAY)
        assert dues(emit) == [clock(10)]

    virtually(story)


def test_at_missed_while_stopped_ticks_at_the_start() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        timer = at(clock(10))
        async with running(timer, emit):
            await passes(MINUTE)
        wall.set_by += DAY
        async with running(timer, emit):
            await passes(MINUTE)
        assert [(event.time, missed(event)) for event in emit.events] == [(clock(10), 1)]

    virtually(story)


def test_at_an_instant_past_before_the_first_start_is_counted_and_never_ticks() -> None:
    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        for _ in range(2):
            async with running(at("2020-01-01T00:00Z"), emit):
                await passes(MINUTE)
                assert emit.is_up
        assert not emit.events
        assert emit.rejected["missed"] == 1

    virtually(story)


def test_jitter_delays_the_start_and_keeps_the_due_time_and_the_identity() -> None:
    timer = every("1h", jitter="30m", name="report")

    async def story(wall: Wall, emit: RecordingEmitter) -> None:
        async with running(timer, emit):
            await passes(59 * MINUTE + timer.starts_at(clock(10)) - clock(10) - MINUTE)
            assert not emit.events
            await passes(2 * MINUTE)
            assert dues(emit) == [clock(10)]
            assert emit.events[0].id == every("1h", name="report").event(clock(10)).id

    virtually(story)


@given(st.integers(0, 10**6), st.sampled_from(["a", "b"]))
def test_jitter_depends_on_name_and_due_only(hours: int, name: str) -> None:
    due = START + hours * HOUR
    timer = every("1h", jitter="30m", name=name)
    delay = timer.starts_at(due) - due
    assert timedelta(0) <= delay < 30 * MINUTE
    assert every("1h", jitter="30m", name=name).starts_at(due) - due == delay
    assert every("1h", jitter="30m", name=name + "x").starts_at(due) - due != delay


def test_jitter_spreads_timers_evenly() -> None:
    delays = sorted(
        (every("1h", jitter="10m", name=f"timer {n}").starts_at(clock(10)) - clock(10)) / MINUTE
        for n in range(1000)
    )
    assert max(b - a for a, b in pairwise(delays)) < 0.2


# ---------------------------------------------------------------- declaring


@pytest.mark.parametrize(
    ("timer", "name"),
    [
        (cron(" 0  9 * * mon ", tz="Europe/Berlin"), "cron:0 9 * * MON"),
        (cron("@daily"), "cron:0 0 * * *"),
        (cron("@daily", tz=UTC), "cron:0 0 * * *"),
        (cron("@daily", jitter="5m", missed="skip"), "cron:0 0 * * *"),
        (every("900s"), "every:15m"),
        (every(timedelta(minutes=15), start="now"), "every:15m"),
        (at("2026-12-01T09:00", tz="Europe/Berlin"), "at:2026-12-01T09:00"),
        (at(datetime(2026, 12, 1, 9, tzinfo=UTC)), "at:2026-12-01T09:00:00+00:00"),
        (every("15m", name="poll"), "poll"),
    ],
)
def test_a_name_is_kind_and_natural_key(timer: Timer, name: str) -> None:
    timer.check()
    assert timer.name == name
    assert isinstance(timer, ReadTrigger)


def test_equal_timers_are_one_value() -> None:
    assert len({every("900s"), every("15m"), every(timedelta(minutes=15))}) == 1
    assert cron("@hourly") == cron("0 * * * *")
    assert cron("@hourly") != cron("@hourly", missed="skip")


@pytest.mark.parametrize(
    ("timer", "reason"),
    [
        (cron("61 * * * *"), "minute field"),
        (cron("@daily", tz="Mars/Base"), "not an IANA time zone"),
        (cron("@daily", tz=""), "not an IANA time zone"),
        (cron("@daily", missed="never"), "run_once"),  # type: ignore[arg-type] # what a user without a type checker writes
        (cron("@daily", missed="run_all", missed_limit=0), "missed_limit"),
        (cron("@daily", name=" "), "name"),
        (every("1ms"), "100ms"),
        (every("1m", jitter="1m"), "shorter than the shortest time"),
        (cron("* * * * *", jitter="10m"), "between two ticks, 1m"),
        (cron("0 9,10 * * *", jitter="2h"), "between two ticks, 1h"),
        (cron("0 0 * * *", tz="Europe/Berlin", jitter="23h"), "between two ticks, 23h"),
        (cron("0 0 31 12 FRI", jitter="1d"), "between two ticks, 1d"),
        (every("1d", tz="Europe/Berlin"), "cron("),
        (every("1d", start="soon"), "cannot read the time"),
        (at("2026-12-01T09:00"), "without a zone"),
        (at(datetime(2026, 12, 1)), "without a zone"),  # noqa: DTZ001 - the mistake under test
    ],
)
def test_check_refuses_what_cannot_work(timer: Timer, reason: str) -> None:
    with pytest.raises(SetupError) as refusal:
        timer.check()
    assert reason in str(refusal.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda wrong: cron(wrong),
        lambda wrong: at(wrong),
        lambda wrong: every(wrong),
        lambda wrong: every("1m", start=wrong),
        lambda wrong: every("1m", missed_limit=wrong),
        lambda wrong: every("1m", tz=wrong, start="2026-12-01T09:00"),
    ],
)
@pytest.mark.parametrize("wrong", [-5, b"x", ["x"]])
def test_a_value_of_the_wrong_type_is_refused_by_name(
    make: Callable[[Any], Timer], wrong: Any
) -> None:
    with pytest.raises(SetupError, match=r"-5|x|missed_limit"):
        make(wrong).check()


def test_at_needs_a_time() -> None:
    nothing: Any = None
    with pytest.raises(SetupError, match="write a time"):
        at(nothing)


@pytest.mark.parametrize("make", [lambda: every("soon"), lambda: cron("@daily", jitter="a bit")])
def test_an_unreadable_duration_is_refused_where_it_is_written(make: Callable[[], Timer]) -> None:
    with pytest.raises(SetupError, match="cannot read the duration"):
        make()


# ---------------------------------------------------------------- the contract, on the real loop


class TimerCase:
    """A timer whose clock stands still, just before it is due, until input is made."""

    keeps_input = True

    def __init__(self, timer: Timer, start: datetime) -> None:
        self._timer = timer
        self._due = start
        self._now = start
        self._made: list[datetime] = []
        self._emit = self.emitter()
        self._move()

    def emitter(self) -> RecordingEmitter:
        return RecordingEmitter(lambda: self._now)

    @asynccontextmanager
    async def watching(self, emit: RecordingEmitter) -> AsyncIterator[None]:
        self._emit = emit
        async with watch(self._timer, emit):
            yield

    async def make_input(self) -> None:
        self._made.append(self._due)
        self._move()

    async def redeliver(self) -> None:
        self._emit.rewind()

    def acknowledged(self) -> int:
        stored = self._emit.stored_positions.get("tick")
        if stored is None:
            return 0
        return sum(due <= datetime.fromisoformat(stored) for due in self._made)

    def _move(self) -> None:
        due = self._timer.schedule.next_after(self._due)
        assert due is not None
        self._due = due
        self._now = due - timedelta(milliseconds=20)


class TestTimersKeepTheContract(TriggerContract):
    @pytest.fixture(
        params=[
            every("100ms"),
            every("30s", missed="skip"),
            cron("* * * * * *", tz="Europe/Berlin", missed="run_all"),
        ],
        ids=lambda timer: timer.name,
    )
    def case(self, request: pytest.FixtureRequest) -> TriggerCase:
        return TimerCase(request.param, START)


class JournalEmitter(RecordingEmitter):
    """Stores in the real journal; `receipts` says what became of each event."""

    def __init__(self, journal: Journal, trigger: str, now: Callable[[], datetime]) -> None:
        super().__init__(now)
        self._journal = journal
        self._trigger = trigger
        self.receipts: list[Appended] = []

    async def __call__(
        self,
        events: Sequence[Event],
        positions: Mapping[str, str | None] | None = None,
        **_more: Any,
    ) -> Sequence[Receipt]:
        entries = [Entry(event=event) for event in events]
        known = await self.positions()
        moves = {each: Move(known.get(each), to) for each, to in (positions or {}).items()}
        stored = await self._journal.append(
            entries, trigger=self._trigger, positions=moves, now=self.now()
        )
        self.receipts += stored
        return [Receipt(event=one.event, duplicate=one.duplicate) for one in stored]

    async def positions(self) -> dict[str, str]:
        return await self._journal.positions(self._trigger)


async def test_the_real_journal_keeps_ticks_and_refuses_one_fired_twice(tmp_path: Path) -> None:
    timer = every("30s", missed="run_all")
    now = START
    seen: list[Appended] = []

    async def sitting(until: Callable[[JournalEmitter], bool]) -> None:
        journal = await open_journal(
            tmp_path, metrics=Metrics(), max_unfinished_runs=100, min_free_bytes=0
        )
        emit = JournalEmitter(journal, timer.name, lambda: now)
        try:
            async with watch(timer, emit):
                await emit.until(lambda: until(emit))
        finally:
            seen.extend(emit.receipts)
            await journal.close()

    await sitting(lambda emit: emit.is_up)
    now += 2 * MINUTE
    await sitting(lambda emit: len(emit.receipts) == 4)
    assert [one.duplicate for one in seen] == [False] * 4
    await sitting(lambda emit: emit.is_up)
    assert len(seen) == 4, "a restart owes nothing that is stored"

    journal = await open_journal(
        tmp_path, metrics=Metrics(), max_unfinished_runs=100, min_free_bytes=0
    )
    tick = (await journal.positions(timer.name)).get("tick")
    await journal.append(
        [], trigger=timer.name, positions={"tick": Move(tick, START.isoformat())}, now=now
    )  # as after a restored position
    await journal.close()
    await sitting(lambda emit: len(emit.receipts) == 4)
    assert [(one.event, one.duplicate, one.conflict) for one in seen[4:]] == [
        (one.event, True, False) for one in seen[:4]
    ]


@pytest.mark.alone
async def test_real_ticks_come_in_time_and_never_early() -> None:
    lateness: list[float] = []

    class Noting(RecordingEmitter):
        async def __call__(self, *arguments: Any, **more: Any) -> Any:
            events = arguments[0]
            lateness.extend((self.now() - event.time).total_seconds() for event in events)
            return await super().__call__(*arguments, **more)

    emit = Noting()
    async with watch(every("100ms"), emit):
        await emit.stored(10)
    assert min(lateness) >= 0
    assert sorted(lateness)[5] < 0.05
