"""Schedules against a clock watched minute by minute, over every zone with a transition."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from turnout.service.domain.errors import SetupError
from turnout.service.domain.zones import load_zone
from turnout.triggers.calendar import ALIASES, Cron, Every, Once, Schedule, cron_fields

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
HALF_DAY = timedelta(hours=12)
FIRST, LAST = datetime(2026, 1, 1, tzinfo=UTC), datetime(2029, 1, 1, tzinfo=UTC)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def ticks(schedule: Schedule, after: datetime, until: datetime) -> list[datetime]:
    """All due instants in (after, until]."""
    found: list[datetime] = []
    due = schedule.next_after(after)
    while due is not None and due <= until:
        found.append(due)
        due = schedule.next_after(due)
    return found


# ---------------------------------------------------------------- the zones, by their transitions


@cache
def transitions(name: str) -> tuple[tuple[datetime, timedelta, timedelta], ...]:
    """(instant, offset before, offset after) in 2026-2028, found by looking twice a day."""
    zone = ZoneInfo(name)
    found, at, offset = [], FIRST, FIRST.astimezone(zone).utcoffset()
    while at < LAST:
        after = (at + HALF_DAY).astimezone(zone).utcoffset()
        if after != offset:
            minute = at
            while minute.astimezone(zone).utcoffset() == offset:
                minute += MINUTE
            assert offset is not None and after is not None
            found.append((minute, offset, after))
        at, offset = at + HALF_DAY, after
    return tuple(found)


@cache
def rule_sets() -> dict[str, tuple[tuple[datetime, timedelta, timedelta], ...]]:
    """One zone for each distinct set of transitions; zones without any are one set."""
    sets: dict[object, str] = {}
    for name in sorted(available_timezones()):
        sets.setdefault(_fingerprint(name) and transitions(name), name)
    return {name: transitions(name) for name in sets.values()}


@cache
def _fingerprint(name: str) -> bool:
    """Whether the zone changes at all; a look at each half month is enough to tell."""
    zone = ZoneInfo(name)
    half_month = timedelta(days=15)
    looks = (FIRST + half_month * n for n in range(74))
    return len({look.astimezone(zone).utcoffset() for look in looks}) > 1


# ---------------------------------------------------------------- the oracle


@dataclass(frozen=True)
class Job:
    """A cron expression beside the same thing said in plain sets."""

    fields: str
    minutes: frozenset[int]
    hours: frozenset[int]
    is_fixed: bool


def job(fields: str, minutes: Iterable[int], hours: Iterable[int], *, fixed: bool) -> Job:
    return Job(fields, frozenset(minutes), frozenset(hours), fixed)


ALL_HOURS, ALL_MINUTES = range(24), range(60)
JOBS = [
    job("30 2 * * *", {30}, {2}, fixed=True),
    job("0 0 * * *", {0}, {0}, fixed=True),
    job("0 9 * * *", {0}, {9}, fixed=True),
    job("0,15,59 0,1,2,3 * * *", {0, 15, 59}, {0, 1, 2, 3}, fixed=True),
    job("5-10 0-23 * * *", range(5, 11), ALL_HOURS, fixed=True),
    job("0 30 1 * * *", {30}, {1}, fixed=True),
    job("0 45 23 * * *", {45}, {23}, fixed=True),
    job("* 0-4 * * *", ALL_MINUTES, range(5), fixed=False),
    job("*/15 * * * *", range(0, 60, 15), ALL_HOURS, fixed=False),
    job("45 * * * *", {45}, ALL_HOURS, fixed=False),
    job("50 */2 * * *", {50}, range(0, 24, 2), fixed=False),
    job("*/20 2 * * *", {0, 20, 40}, {2}, fixed=False),
    job("*/7 0 * * *", range(0, 60, 7), {0}, fixed=False),
    job("0 */10 1 * * *", range(0, 60, 10), {1}, fixed=False),
]


def watch_clock(name: str, middle: datetime) -> list[tuple[datetime, datetime]]:
    """(instant, what the wall clock shows) of each minute around `middle`."""
    zone = ZoneInfo(name)
    return [
        (at, at.astimezone(zone).replace(tzinfo=None))
        for at in (middle + MINUTE * n for n in range(-12 * 60, 30 * 60 + 1))
    ]


def expected(job: Job, clock: list[tuple[datetime, datetime]]) -> list[datetime]:
    if not job.is_fixed:
        return [
            at for at, local in clock if local.minute in job.minutes and local.hour in job.hours
        ]
    shown: dict[datetime, datetime] = {}
    for at, local in clock:
        shown.setdefault(local, at)
    due = {
        at for local, at in shown.items() if local.minute in job.minutes and local.hour in job.hours
    }
    for (_, before), (at, local) in pairwise(clock):
        skipped = before + MINUTE
        while skipped < local:
            if skipped.minute in job.minutes and skipped.hour in job.hours:
                due.add(at)
            skipped += MINUTE
    return sorted(due)


@pytest.mark.timeout(120)
@pytest.mark.slow
def test_every_transition_of_every_zone_follows_the_rules() -> None:
    checked = 0
    for name, changes in rule_sets().items():
        for middle, _, _ in changes or [(utc("2027-03-28T01:00"), None, None)]:
            clock = watch_clock(name, middle)
            # The first hours are left out: an overlap there may have shown them before.
            begin, end = middle - 6 * HOUR, middle + 26 * HOUR
            for job in JOBS:
                want = [at for at in expected(job, clock) if begin < at <= end]
                assert ticks(Cron(job.fields, name), begin, end) == want, (name, middle, job.fields)
                checked += 1
    assert checked > 1000


def test_from_any_instant_around_a_transition_the_next_tick_is_the_same() -> None:
    """Asked from each quarter hour, not only from tick to tick, for the oddest zones."""
    for name in ("Europe/Berlin", "Australia/Lord_Howe", "Africa/Cairo", "Antarctica/Troll"):
        for middle, _, _ in transitions(name)[:2]:
            clock = watch_clock(name, middle)
            for job in JOBS:
                due = expected(job, clock)
                for quarter in range(-8 * 4, 24 * 4):
                    asked = middle + quarter * timedelta(minutes=15, seconds=1)
                    index = bisect_right(due, asked)
                    if index < len(due):
                        assert Cron(job.fields, name).next_after(asked) == due[index], (
                            name, asked, job.fields,
                        )  # fmt: skip


@pytest.mark.slow
def test_every_zone_by_name() -> None:
    """Each of the zones, whatever its rules: a daily job at nine shows nine, once a day."""
    for name in sorted(available_timezones()):
        zone = ZoneInfo(name)
        Cron("0 9 * * *", name).check()
        for start in (FIRST, utc("2026-07-03T04:05:06.789"), utc("2028-10-28T12:00")):
            due = ticks(Cron("0 9 * * *", name), start, start + 5 * 24 * HOUR)
            shown = [at.astimezone(zone).replace(tzinfo=None) for at in due]
            assert len(due) == 5
            assert {local.hour * 60 + local.minute for local in shown} == {9 * 60}
            assert all(b.date() - a.date() == timedelta(days=1) for a, b in pairwise(shown))


# ---------------------------------------------------------------- named cases


def test_berlin_spring_and_autumn() -> None:
    daily = Cron("30 2 * * *", "Europe/Berlin")
    # 29 March 2026: 02:00 becomes 03:00, at 01:00 UTC.
    assert ticks(daily, utc("2026-03-27T12:00"), utc("2026-03-30T12:00")) == [
        utc("2026-03-28T01:30"), utc("2026-03-29T01:00"), utc("2026-03-30T00:30"),
    ]  # fmt: skip
    # 25 October 2026: 03:00 becomes 02:00, at 01:00 UTC.
    assert ticks(daily, utc("2026-10-24T12:00"), utc("2026-10-26T12:00")) == [
        utc("2026-10-25T00:30"), utc("2026-10-26T01:30"),
    ]  # fmt: skip
    half_hours = Cron("*/30 * * * *", "Europe/Berlin")
    assert ticks(half_hours, utc("2026-10-25T00:00"), utc("2026-10-25T02:00")) == [
        utc("2026-10-25T00:30"), utc("2026-10-25T01:00"),
        utc("2026-10-25T01:30"), utc("2026-10-25T02:00"),
    ]  # fmt: skip


def test_times_of_one_gap_share_its_end() -> None:
    assert ticks(
        Cron("0,15,30 2,3 * * *", "Europe/Berlin"), utc("2026-03-29T00:00"), utc("2026-03-29T01:30")
    ) == [utc("2026-03-29T01:00"), utc("2026-03-29T01:15"), utc("2026-03-29T01:30")]


def test_lord_howe_shifts_by_half_an_hour() -> None:
    # 5 April 2026: 02:00 becomes 01:30, at 15:00 UTC the day before.
    hourly = Cron("45 * * * *", "Australia/Lord_Howe")
    assert ticks(hourly, utc("2026-04-04T14:00"), utc("2026-04-04T16:30")) == [
        utc("2026-04-04T14:45"), utc("2026-04-04T15:15"), utc("2026-04-04T16:15"),
    ]  # fmt: skip
    # 4 October 2026: 02:00 becomes 02:30, at 15:30 UTC the day before.
    daily = Cron("15 2 * * *", "Australia/Lord_Howe")
    assert ticks(daily, utc("2026-10-02T16:00"), utc("2026-10-04T16:00")) == [
        utc("2026-10-03T15:30"), utc("2026-10-04T15:15"),
    ]  # fmt: skip


def test_a_midnight_that_is_skipped() -> None:
    # Cairo, 24 April 2026: 00:00 becomes 01:00, at 22:00 UTC the day before.
    assert ticks(
        Cron("0 0 * * *", "Africa/Cairo"), utc("2026-04-22T23:00"), utc("2026-04-24T23:00")
    ) == [utc("2026-04-23T22:00"), utc("2026-04-24T21:00")]


def test_a_day_that_is_skipped_has_its_ticks_at_the_start_of_the_next() -> None:
    # Apia left out 30 December 2011 when it crossed the date line, at 10:00 UTC.
    assert ticks(
        Cron("0 9 * * *", "Pacific/Apia"), utc("2011-12-29T10:00"), utc("2011-12-31T00:00")
    ) == [utc("2011-12-29T19:00"), utc("2011-12-30T10:00"), utc("2011-12-30T19:00")]


@pytest.mark.parametrize(
    ("fields", "after", "due"),
    [
        ("0 0 29 2 *", "2026-01-01", "2028-02-29"),
        ("0 0 29 2 *", "2028-02-29", "2032-02-29"),
        ("0 0 29 2 1", "2026-01-01", "2026-02-02"),  # a day of month *or* a weekday
        ("0 0 31 * *", "2026-01-31", "2026-03-31"),
        ("0 0 L * *", "2028-02-01", "2028-02-29"),
        ("0 0 LW * *", "2026-01-01", "2026-01-30"),
        ("0 0 * * 5L", "2026-01-01", "2026-01-30"),
        ("0 0 * * mon#2", "2026-01-01", "2026-01-12"),
        ("0 0 1 jan-mar/2 *", "2026-01-02", "2026-03-01"),
        ("@yearly", "2026-01-01", "2027-01-01"),
        ("@monthly", "2026-01-01", "2026-02-01"),
        ("@weekly", "2026-01-01", "2026-01-04"),
        ("@daily", "2026-01-01", "2026-01-02"),
        ("@midnight", "2026-01-01", "2026-01-02"),
        ("@Hourly", "2026-01-01", "2026-01-01T01:00"),
        ("30 * * * * *", "2026-01-01", "2026-01-01T00:00:30"),
        ("*/5 * 29 2 *", "2026-01-01", "2028-02-29"),
    ],
)
def test_calendar_cases(fields: str, after: str, due: str) -> None:
    schedule = Cron(cron_fields(fields))
    schedule.check()
    assert schedule.next_after(utc(after)) == utc(due)


def test_an_instant_in_another_zone_is_the_same_instant() -> None:
    after = utc("2026-10-25T00:45").astimezone(ZoneInfo("Europe/Berlin"))  # 02:45, the first one
    due = Cron("*/30 * * * *", "Europe/Berlin").next_after(after)
    assert due == utc("2026-10-25T01:00")
    assert due.tzinfo is UTC


# ---------------------------------------------------------------- properties

ZONES = st.sampled_from(sorted(available_timezones()))
INSTANTS = st.integers(int(FIRST.timestamp()), int(LAST.timestamp())).map(
    lambda second: datetime.fromtimestamp(second, UTC)
)
FIXED = st.builds("{} {} * * *".format, st.integers(0, 59), st.integers(0, 23))
STEPS = st.builds("*/{} * * * *".format, st.integers(1, 59))


@settings(max_examples=300, deadline=None)
@given(ZONES, INSTANTS, st.one_of(FIXED, STEPS))
@example("Europe/Berlin", utc("2026-10-25T01:30"), "45 2 * * *")
def test_ticks_go_up_and_a_later_question_never_has_an_earlier_answer(
    zone: str, instant: datetime, fields: str
) -> None:
    schedule = Cron(fields, zone)
    first = schedule.next_after(instant)
    assert first is not None and first > instant
    assert schedule.next_after(first - timedelta(microseconds=1)) == first
    second = schedule.next_after(first)
    assert second is not None and second > first
    between = first + (second - first) / 2
    assert schedule.next_after(between) == second


@settings(max_examples=300, deadline=None)
@given(ZONES, INSTANTS, st.integers(0, 59), st.integers(0, 23))
def test_a_fixed_time_happens_once_on_each_local_day(
    zone: str, instant: datetime, minute: int, hour: int
) -> None:
    due = ticks(Cron(f"{minute} {hour} * * *", zone), instant, instant + 4 * 24 * HOUR)
    days = [at.astimezone(ZoneInfo(zone)).date() for at in due]
    assert all(b - a == timedelta(days=1) for a, b in pairwise(days))
    assert len(days) in (3, 4, 5)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789*/-,#L W@MONFEB?", max_size=24))
@example("1L/2 * * * *")
@example("0 0 * * 1#6")
@example("0 0 L-3 * *")
def test_any_text_is_a_schedule_or_a_reason(text: str) -> None:
    schedule = Cron(cron_fields(text))
    try:
        schedule.check()
    except SetupError as error:
        assert "cron" in str(error)
    else:
        assert schedule.next_after(FIRST) is not None


# ---------------------------------------------------------------- intervals and single instants


@pytest.mark.parametrize(
    ("interval", "after", "due"),
    [
        (timedelta(minutes=15), "2026-01-01T00:07:30", "2026-01-01T00:15"),
        (timedelta(minutes=15), "2026-01-01T00:15", "2026-01-01T00:30"),
        (timedelta(days=1), "2026-01-01T00:00:00.000001", "2026-01-02"),
        (timedelta(weeks=1), "2026-01-01", "2026-01-05"),
        (timedelta(milliseconds=100), "2026-01-01T00:00:00.05", "2026-01-01T00:00:00.100"),
    ],
)
def test_intervals_are_aligned(interval: timedelta, after: str, due: str) -> None:
    assert Every(interval).next_after(utc(after)) == utc(due)


def test_intervals_count_elapsed_time_over_a_transition() -> None:
    due = ticks(Every(timedelta(hours=6)), utc("2026-10-24T12:00"), utc("2026-10-26T00:00"))
    assert {b - a for a, b in pairwise(due)} == {timedelta(hours=6)}


def test_an_interval_with_a_start_ticks_first_at_the_start() -> None:
    schedule = Every(timedelta(hours=5), "2026-12-01T09:00", "Europe/Berlin")
    schedule.check()
    assert ticks(schedule, utc("2026-11-01"), utc("2026-12-01T20:00")) == [
        utc("2026-12-01T08:00"), utc("2026-12-01T13:00"), utc("2026-12-01T18:00"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("when", "zone", "due"),
    [
        ("2026-12-01T09:00", "Europe/Berlin", "2026-12-01T08:00"),
        ("2026-12-01T09:00+01:00", None, "2026-12-01T08:00"),
        ("2026-12-01T09:00Z", None, "2026-12-01T09:00"),
        ("2026-03-29T02:30", "Europe/Berlin", "2026-03-29T01:00"),  # skipped: the gap's end
        ("2026-10-25T02:30", "Europe/Berlin", "2026-10-25T00:30"),  # twice: the first
    ],
)
def test_once(when: str, zone: str | None, due: str) -> None:
    schedule = Once(when, zone)
    schedule.check()
    assert schedule.next_after(utc(due) - timedelta(microseconds=1)) == utc(due)
    assert schedule.next_after(utc(due)) is None


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("schedule", "parts"),
    [
        (Cron("61 * * * *"), ["minute", "'61'", "0-59"]),
        (Cron("* 24 * * *"), ["hour", "'24'", "0-23"]),
        (Cron("* * 32 * *"), ["day-of-month", "'32'", "1-31"]),
        (Cron("* * * 13 *"), ["month", "'13'", "1-12"]),
        (Cron("* * * * FUN"), ["day-of-week", "'FUN'", "SUN-SAT"]),
        (Cron("60 * * * * *"), ["second", "'60'", "0-59"]),
        (Cron("*/0 * * * *"), ["minute", "'*/0'"]),
        (Cron("0 0 30 2 *"), ["never comes", "30"]),
        (Cron("0 0 31 4,6 *"), ["never comes", "31"]),
        (Cron("* * * *"), ["4 fields", "write 5"]),
        (Cron("@REBOOT"), ["@reboot", "@daily"]),
        (Cron("0 9 * * *", "Europe/Berln"), ["'Europe/Berln'", "did you mean Europe/Berlin"]),
        (Cron("0 9 * * *", "../etc/passwd"), ["not an IANA time zone"]),
        (Cron("0 9 * * *", "Europe"), ["not an IANA time zone"]),
        (Every(timedelta(milliseconds=99)), ["100ms"]),
        (Every(timedelta(days=4000)), ["3660d"]),
        (Every(timedelta(days=1), None, "Europe/Berlin"), ["elapsed time", "cron("]),
        (Every(timedelta(days=1), "2026-12-01T09:00"), ["without a zone", "tz="]),
        (Once("2026-12-01T09:00"), ["without a zone", "tz="]),
        (Once("next tuesday"), ["cannot read the time", "2026-12-01T09:00"]),
        (Once("2030-02-30T00:00", "UTC"), ["does not exist", "day is out of range"]),
        (Once("2026-12-01T09:00+01:00", "Europe/Berlin"), ["own offset"]),
        (Once("9999-12-31T23:59:59", "America/New_York"), ["years 1 to 9999"]),
        (Once("9999-12-31T23:59:59-05:00"), ["years 1 to 9999"]),
        (Once("0001-01-01T00:00", "Asia/Tokyo"), ["years 1 to 9999"]),
        (Once("0001-01-01T00:00:00+09:00"), ["years 1 to 9999"]),
        (Once("9999-12-31T23:59:59", "UTC"), ["a hundred years"]),
        (Once("2200-01-01T00:00Z"), ["a hundred years"]),
        (Once("0001-01-01T00:00", "America/New_York"), ["a hundred years"]),
        (Every(timedelta(days=1), "9999-12-31T23:59:59-05:00"), ["years 1 to 9999"]),
        (Every(timedelta(days=1), "1800-01-01T00:00", "UTC"), ["a hundred years"]),
    ],
)
def test_a_refusal_names_what_is_wrong_and_the_fix(schedule: Schedule, parts: list[str]) -> None:
    with pytest.raises(SetupError) as refusal:
        schedule.check()
    for part in parts:
        assert part in str(refusal.value)


def test_zones_stay_loaded() -> None:
    """Nine zones and more: reading their files again would block the loop at each tick."""
    names = sorted(available_timezones())[:20]
    assert all(load_zone(name) is load_zone(name) for name in names)
    first = [load_zone(name) for name in names]
    assert all(a is b for a, b in zip(first, map(load_zone, names), strict=True))


def test_every_alias_is_a_schedule() -> None:
    for alias in ALIASES:
        Cron(cron_fields(alias)).check()
