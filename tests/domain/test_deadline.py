"""Deadlines are local times of day, once a day, whatever the clock of their zone does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.service.domain.deadline import EVERY_DAY, deadline
from turnout.service.domain.errors import SetupError

BERLIN = deadline("06:00", tz="Europe/Berlin", days="mon-fri")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_it_is_a_local_time_on_its_days() -> None:
    friday, monday = at("2026-01-02T05:00"), at("2026-01-05T05:00")
    assert BERLIN.next_after(at("2026-01-01T12:00")) == friday
    assert BERLIN.next_after(friday) == monday
    assert BERLIN.latest(monday - timedelta(seconds=1)) == friday
    assert BERLIN.latest(monday) == monday
    assert BERLIN.day_before(monday) == at("2026-01-04T05:00")
    assert BERLIN.words == "06:00 Europe/Berlin, mon tue wed thu fri"


def test_the_clock_of_the_zone_may_change() -> None:
    skipped = deadline("02:30", tz="Europe/Berlin")
    assert skipped.latest(at("2026-03-29T12:00")) == at("2026-03-29T01:30")  # 03:30 there
    twice = deadline("02:30", tz="Europe/Berlin")
    assert twice.latest(at("2026-10-25T12:00")) == at("2026-10-25T00:30")  # the first one
    assert BERLIN.day_before(at("2026-03-30T04:00")) == at("2026-03-29T04:00")


@given(
    st.integers(0, 60 * 366 * 86_400).map(lambda n: at("2000-01-01") + timedelta(seconds=n)),
    st.sampled_from(["UTC", "Europe/Berlin", "Pacific/Apia", "America/St_Johns", "Asia/Kathmandu"]),
    st.sampled_from([None, "mon", "sat,sun", "fri-mon"]),
)
def test_the_next_one_is_the_latest_once_it_has_come(
    now: datetime, zone: str, days: str | None
) -> None:
    one = deadline("00:30", tz=zone, days=days)
    coming = one.next_after(now)
    assert coming > now >= one.latest(now)
    assert one.latest(coming) == coming
    assert one.latest(coming - timedelta(microseconds=1)) == one.latest(now)
    found = list(islice(one.back_from(now), 5))
    assert found == sorted(found, reverse=True)


def test_days_are_names_and_ranges() -> None:
    assert deadline("06:00").days == EVERY_DAY
    assert deadline("06:00", days="Fri-Mon, wed").days == {4, 5, 6, 0, 2}


@pytest.mark.parametrize(
    ("at", "options", "words"),
    [
        ("6:00", {}, "write a time of day"),
        ("25:00", {}, "write a time of day"),
        (600, {}, "write a time of day"),
        ("06:00", {"tz": "Europe/Berln"}, "did you mean Europe/Berlin"),
        ("06:00", {"days": "weekdays"}, "write names and ranges of mon, tue"),
        ("06:00", {"days": ""}, "write names and ranges"),
        ("06:00", {"days": 5}, "write names and ranges"),
    ],
)
def test_nonsense_is_refused_by_name(at: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(SetupError, match=words):
        deadline(at, **options)
