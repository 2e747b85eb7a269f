"""A rate is read as it is meant, and its log never lets more start than it says."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.gates import NOW
from turnout.service.domain.errors import SetupError
from turnout.service.flowcontrol.rate import Rate, SlidingLog, parse_rate


@pytest.mark.parametrize(
    ("text", "count", "seconds"),
    [
        ("100/m", 100, 60),
        ("10/s", 10, 1),
        ("20/2s", 20, 2),
        ("5/500ms", 5, 0.5),
        ("1000/h", 1000, 3600),
        ("7/1h30m", 7, 5400),
        (" 5000 / d ", 5000, 86_400),
        ("3/24h", 3, 86_400),
    ],
)
def test_a_rate_is_a_count_and_a_period(text: str, count: int, seconds: float) -> None:
    assert parse_rate(text) == Rate(count, timedelta(seconds=seconds))


@pytest.mark.parametrize("text", ["100/m", "20/2s", "5/500ms", "7/1h30m", "5000/d", "1/10s", "1/s"])
def test_a_rate_is_shown_as_it_is_written(text: str) -> None:
    assert str(parse_rate(text)) == text


FORMS = 'write it like "10/s", "100/m", "20/2s", "1000/h" or "5000/d"'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("abc", f"cannot read the rate 'abc'; {FORMS}"),
        ("100", f"cannot read the rate '100'; {FORMS}"),
        ("100/", f"cannot read the rate '100/'; {FORMS}"),
        ("/m", f"cannot read the rate '/m'; {FORMS}"),
        ("-1/m", f"cannot read the rate '-1/m'; {FORMS}"),
        ("1.5/s", f"cannot read the rate '1.5/s'; {FORMS}"),
        ("5/min", f"cannot read the rate '5/min'; {FORMS}"),
        ("5/5", f"cannot read the rate '5/5'; {FORMS}"),
        (100, f"cannot read the rate 100; {FORMS}"),
        (None, f"cannot read the rate None; {FORMS}"),
        (
            "1000001/m",
            "the rate '1000001/m' counts 1000001; 1,000,000 are the most: write a shorter period",
        ),
        ("0/m", "the rate '0/m' lets nothing start; that is `turnout pause`, not 0"),
        ("5/0s", f"the rate '5/0s' has no period; {FORMS}"),
        ("5/25h", "the rate '5/25h' counts over more than a day, the longest there is"),
        ("5/w", "the rate '5/w' counts over more than a day, the longest there is"),
    ],
)
def test_what_is_no_rate_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(SetupError) as refused:
        parse_rate(text)
    assert refused.value.message == said


def seconds(number: float) -> datetime:
    return NOW + timedelta(seconds=number)


def naive(starts: list[datetime], rate: Rate, at: datetime) -> bool:
    """Whether one more start keeps every stretch of the period at the count, by looking at all."""
    ordered = sorted([*starts, at])
    return all(
        later - earlier >= rate.period
        for earlier, later in zip(ordered, ordered[rate.count :], strict=False)
    )


RATES = st.builds(Rate, st.integers(1, 4), st.integers(1, 5).map(lambda n: timedelta(seconds=n)))


@given(RATES, st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3)), max_size=60))
def test_a_log_lets_exactly_those_start_that_a_look_at_all_of_them_lets(
    rate: Rate, asked: list[tuple[str, int]]
) -> None:
    log = SlidingLog(rate.period)
    started: dict[str, list[datetime]] = {"a": [], "b": []}
    now = NOW
    for key, pause in asked:
        now += timedelta(seconds=pause)
        free_at = log.next_free(key, rate, now)
        assert (free_at is None) is naive(started[key], rate, now)
        if free_at is not None:
            before = free_at - timedelta(microseconds=1)
            assert not naive(started[key], rate, before), "it could have started sooner"
            assert naive(started[key], rate, free_at)
            continue
        log.add(key, now)
        started[key].append(now)


@given(RATES, st.lists(st.integers(-8, 8), max_size=60))
def test_a_clock_that_is_set_lets_no_stretch_of_recorded_starts_hold_more(
    rate: Rate, moves: list[int]
) -> None:
    log, now = SlidingLog(timedelta(days=1)), NOW
    started: list[datetime] = []
    for move in moves:
        now += timedelta(seconds=move)
        free_at = log.next_free("", rate, now)
        if free_at is None:
            assert naive(started, rate, now)
            log.add("", now)
            started.append(now)
        else:
            assert now < free_at <= now + 2 * rate.period, "a clock once ahead stops nothing"


@given(RATES, RATES, st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 3)))
def test_a_new_rate_counts_what_started_under_the_old_one(
    old: Rate, new: Rate, before: list[int], after: list[int]
) -> None:
    log, now = SlidingLog(max(old.period, new.period)), NOW
    started: list[datetime] = []
    for rate, pauses in ((old, before), (new, after)):
        for pause in pauses:
            now += timedelta(seconds=pause)
            allowed = log.next_free("", rate, now) is None
            counted = [at for at in started if at > now - rate.period]
            assert allowed is (len(counted) < rate.count)
            if allowed:
                log.add("", now)
                started.append(now)


def test_a_start_that_did_not_happen_is_given_back() -> None:
    rate, log = Rate(2, timedelta(seconds=10)), SlidingLog(timedelta(seconds=10))
    log.add("a", seconds(0))
    log.add("a", seconds(1))
    assert log.next_free("a", rate, seconds(2)) == seconds(10)
    log.remove("a", seconds(0))
    assert log.next_free("a", rate, seconds(2)) is None
    log.remove("a", seconds(1))
    assert list(log.keys()) == []
    log.remove("a", seconds(1))  # it was forgotten meanwhile


def test_a_key_without_a_start_in_the_period_is_forgotten() -> None:
    log = SlidingLog(timedelta(seconds=10))
    log.add("ahead", seconds(5000))
    for number in range(1000):
        log.add(str(number), seconds(number))
    assert len(list(log.keys())) <= 12
    assert "ahead" in log.keys()  # noqa: SIM118  it is an iterator
