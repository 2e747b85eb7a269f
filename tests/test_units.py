"""Durations and sizes read as people write them, and nothing else."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.service.errors import SetupError
from turnout.service.units import format_duration, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("5m", 300), ("1h30m", 5400), ("1d", 86400), ("1.5h", 5400)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "5", "m", "5 m x", "-1s", "1y", "s5", "1s,", "99999999999w"])
def test_what_is_no_duration_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(SetupError, match="500ms"):
        parse_duration(text)
    with pytest.raises(SetupError):
        parse_duration(timedelta(seconds=-1))
    with pytest.raises(SetupError, match="500ms"):
        parse_duration(30)  # type: ignore[arg-type]  # what an author may write all the same


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
