"""Timers as they are declared: their names, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from turnout.service.domain.errors import (
    SetupError,
)
from turnout.service.domain.trigger import ReadTrigger
from turnout.triggers.timers import Timer, at, cron, every


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
