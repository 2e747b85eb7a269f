"""Durations and sizes read as people write them, and nothing else."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.service.domain.errors import SetupError
from turnout.service.domain.units import (
    LONGEST,
    format_duration,
    parse_duration,
    parse_retention,
    parse_size,
    parse_timeout,
    utc_now,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("5m", 300), ("1h30m", 5400), ("1d", 86400), ("1.5h", 5400)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "5", "m", "5 m x", "-1s", "1y", "s5", "1s,", "inf", "nan", "forever"]
)
def test_what_is_no_duration_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(SetupError, match="500ms"):
        parse_duration(text)
    with pytest.raises(SetupError):
        parse_duration(timedelta(seconds=-1))
    with pytest.raises(SetupError, match="500ms"):
        parse_duration(30)  # type: ignore[arg-type]  # what an author may write all the same


@pytest.mark.parametrize(
    "length",
    ["36525d1ms", "5300w", "450000w", "999999999d", f"{'9' * 400}w", timedelta.max,
     LONGEST + timedelta.resolution],
)  # fmt: skip
def test_a_duration_beyond_a_hundred_years_is_refused_by_name(length: str | timedelta) -> None:
    for parse in (parse_duration, parse_timeout):
        with pytest.raises(SetupError, match=r"the duration .* is too long: a hundred years"):
            parse(length)


@given(st.timedeltas(min_value=timedelta(0), max_value=LONGEST))
def test_now_plus_or_minus_any_duration_is_a_date(length: timedelta) -> None:
    assert utc_now() - parse_duration(length) <= utc_now() + parse_duration(length)


def test_a_retention_is_a_duration_or_forever() -> None:
    assert parse_retention("30d") == timedelta(days=30)
    for word in ("forever", " Forever", "999999d", "450000w", f"{'9' * 400}w", timedelta.max):
        assert parse_retention(word) == LONGEST
    for bad in ("for ever", "-1d", timedelta(days=-1), "inf"):
        with pytest.raises(SetupError):
            parse_retention(bad)


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=400)))
def test_a_written_duration_reads_back_to_the_millisecond(value: timedelta) -> None:
    read = parse_duration(format_duration(value))
    assert abs(read - value) <= timedelta(milliseconds=1)


def test_sizes() -> None:
    assert parse_size("1MiB") == 2**20
    assert parse_size("1.5kB") == 1500
    assert parse_size(7) == 7
    for bad in ("", "MiB", "1 mib", "-1", True):
        with pytest.raises(SetupError):
            parse_size(bad)
