"""Timers whose schedule an author changes, or whose position an operator does."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.trigger_contract import RecordingEmitter
from turnout.service.domain.errors import (
    Refused,
)
from turnout.service.domain.trigger import Seek
from turnout.triggers.timers import Timer, at, cron, every

from .virtual_time import HOUR, MINUTE, Wall, clock, dues, missed, passes, running, virtually

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
