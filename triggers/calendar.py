"""Schedules: pure functions from an instant to the next due one, both in UTC.

A schedule is a value. `next_after(instant)` is the first due instant strictly after `instant`, or
None. It reads no clock and keeps no state, so it returns the same instants after a restart, on
another machine and in a test.

Daylight saving, for `Cron` (the rule of Debian's cron, for five and six fields alike):

* A job is *fixed-time* when none of its second, minute and hour fields starts with `*`
  (`30 2 * * *`, `0 0-23 * * *`). Each of its local times happens exactly once on each matching
  local day. A time that the clock skips is due at the first instant after the gap; a time that the
  clock shows twice is due the first time. Times that fall on one instant are one tick.
* Every other job follows elapsed time (`*/15 * * * *`, `30 * * * *`): it is due whenever the local
  clock shows a matching time, so it is due in both passes of an overlap and never in a gap.

`Once` and the start of `Every` read a local time by the first rule. `Every` counts elapsed time and
ignores daylight saving.

Not here: waiting, missed ticks and jitter (`timers`).
"""

from __future__ import annotations

import math
import re
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Protocol
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from turnout.service.domain.errors import SetupError
from turnout.service.domain.units import LONGEST as MOST
from turnout.service.domain.units import format_duration, utc_now
from turnout.service.domain.zones import load_zone

ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
"""What the names of crontab(5) stand for."""

SHORTEST = timedelta(milliseconds=100)
"""The shortest interval; anything shorter belongs into one flow that loops."""

LONGEST = timedelta(days=3660)

MONDAY = datetime(1970, 1, 5, tzinfo=UTC)
"""The origin of aligned intervals: `15m` gives quarter hours, `1d` UTC midnights, `1w` Mondays."""

_GAPS = 1000
_GAPS_FROM = datetime(2024, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_WEEK = timedelta(days=7)
_FIELDS = ("second", "minute", "hour", "day-of-month", "month", "day-of-week")
_HINTS = {
    "second": "0-59",
    "minute": "0-59",
    "hour": "0-23",
    "day-of-month": "1-31, L (the last day) or LW (the last weekday)",
    "month": "1-12 or JAN-DEC",
    "day-of-week": "0-7 (0 and 7 are Sunday), SUN-SAT, MON#2 or 5L",
}


class Schedule(Protocol):
    """When something is due."""

    def check(self) -> None:
        """Raise `SetupError`, with the reason and the fix, for what can never work."""

    def next_after(self, instant: datetime) -> datetime | None:
        """Return the first due instant (UTC) strictly after an aware `instant`."""


@dataclass(frozen=True, slots=True)
class Cron:
    """Is due when the clock of a zone matches five cron fields, or six with seconds first.

    `fields` is upper case, without aliases and doubled spaces (`cron_fields` makes it so); `zone`
    is an IANA name.
    """

    fields: str
    zone: str = "UTC"

    def check(self) -> None:
        """Raise `SetupError` that names the wrong field, or a date that never comes."""
        load_zone(self.zone)
        words = self.fields.split()
        if self.fields.startswith("@"):
            raise SetupError(
                f"cron {self.fields.lower()!r} is not known; use one of {', '.join(ALIASES)}"
            )
        if len(words) not in (5, 6):
            raise SetupError(
                f"cron {self.fields!r} has {len(words)} fields; write 5 (minute hour day-of-month "
                'month day-of-week), as in "0 9 * * 1-5", or 6 with seconds first'
            )
        try:
            _matcher(self.fields)
        except CronSimError as error:
            raise self._bad_field(str(error).removeprefix("Bad "), words) from None
        if self.next_after(datetime(2000, 1, 1, tzinfo=UTC)) is None:
            raise SetupError(f"cron {self.fields!r} never comes: no such date in 50 years")

    def _bad_field(self, field: str, words: list[str]) -> SetupError:
        value = dict(zip(_FIELDS[-len(words) :], words, strict=True)).get(field, "")
        days = re.fullmatch(r"(\d+)", value)
        if field == "day-of-month" and days and int(days[1]) in (30, 31):
            return SetupError(
                f"cron {self.fields!r} never comes: no month in {words[-2]!r} has a day {value}"
            )
        return SetupError(
            f"cron {self.fields!r}: the {field} field cannot be {value!r}; use {_HINTS[field]}, "
            "a list (1,15), a range (1-5), a step (*/5) or *"
        )

    def next_after(self, instant: datetime) -> datetime | None:
        """Return the next due instant, by the daylight-saving rules of this module."""
        instant = instant.astimezone(UTC)
        zone = load_zone(self.zone)
        if any(word.startswith("*") for word in self.fields.split()[:-3]):
            return _next_elapsed(self.fields, zone, instant)
        return _next_fixed(self.fields, zone, instant)


@dataclass(frozen=True, slots=True)
class Every:
    """Is due at each whole interval of elapsed time from an origin.

    The origin is `MONDAY`, or `start` (read in `zone`), which is then the first due instant.
    """

    interval: timedelta
    start: str | None = None
    zone: str | None = None

    def check(self) -> None:
        """Refuse intervals out of bounds, a start that is no instant, a zone without a start."""
        if not SHORTEST <= self.interval <= LONGEST:
            raise SetupError(
                f"every({format_duration(self.interval)!r}): an interval is from "
                f"{format_duration(SHORTEST)} to {format_duration(LONGEST)}"
            )
        if self.start is not None:
            _refuse_far(self.start, instant_from(self.start, self.zone))
        elif self.zone is not None:
            raise SetupError(
                "every() counts elapsed time, so tz= only reads start=; for a local time of day "
                f'write cron("0 9 * * *", tz={self.zone!r})'
            )

    def next_after(self, instant: datetime) -> datetime | None:
        """Return the next whole interval; with a `start` in the future, the start."""
        instant = instant.astimezone(UTC)
        if self.start is None:
            anchor = MONDAY
        else:
            anchor = instant_from(self.start, self.zone)
            if instant < anchor:
                return anchor
        return anchor + ((instant - anchor) // self.interval + 1) * self.interval


@dataclass(frozen=True, slots=True)
class Once:
    """Is due at one instant: ISO 8601 with an offset, or a local time in `zone`."""

    when: str
    zone: str | None = None

    def check(self) -> None:
        """Refuse text that is no instant (a local time without a zone), and distant instants."""
        _refuse_far(self.when, instant_from(self.when, self.zone))

    def next_after(self, instant: datetime) -> datetime | None:
        """Return the instant if it lies ahead."""
        due = instant_from(self.when, self.zone)
        return due if due > instant.astimezone(UTC) else None


def cron_fields(expression: str) -> str:
    """Return a cron expression in its one spelling: fields, upper case, single spaces."""
    if not isinstance(expression, str):
        raise SetupError(f'cron({expression!r}): write an expression, like "0 9 * * 1-5"')
    expression = ALIASES.get(expression.strip().lower(), expression)
    return " ".join(expression.upper().split())


@lru_cache(maxsize=4096)
def instant_from(text: str, zone: str | None) -> datetime:
    """Return the UTC instant of an ISO 8601 time with an offset, or of a local time in `zone`."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        if not str(error).startswith("Invalid isoformat"):  # such as the 30th of February
            raise SetupError(f"the time {text!r} does not exist: {error}") from None
        raise SetupError(
            f"cannot read the time {text!r}; write it like 2026-12-01T09:00 with tz=, or with its "
            "offset, 2026-12-01T09:00+01:00"
        ) from None
    if moment.tzinfo is not None:
        if zone is not None:
            raise SetupError(f"{text!r} has its own offset; leave out tz={zone!r}")
        return _in_utc(text, moment)
    if zone is None:
        raise SetupError(
            f"{text!r} names no instant without a zone; add tz=, or its offset as in {text}+00:00"
        )
    _in_utc(text, moment.replace(tzinfo=load_zone(zone)))
    return _instant_of(moment, load_zone(zone))


def _in_utc(text: str, moment: datetime) -> datetime:
    """Convert an aware time; refuse one within a day of the years 1 and 9999 that UTC lacks."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise SetupError(f"the time {text!r} is not in the years 1 to 9999 of UTC") from None


def _refuse_far(text: str, instant: datetime) -> None:
    if abs(instant - utc_now()) > MOST:
        raise SetupError(f"the time {text!r} is more than a hundred years away")


def shortest_gap(schedule: Cron | Every | Once) -> timedelta | None:
    """Return the shortest time between two ticks; None for a schedule that ticks once.

    For a cron expression it looks at the next 1,000 ticks: they cover every case of its fields, and
    the nights when the zone's clock changes.
    """
    if isinstance(schedule, Every):
        return schedule.interval
    gaps = []
    last = schedule.next_after(_GAPS_FROM)
    for _ in range(_GAPS):
        due = None if last is None else schedule.next_after(last)
        if last is None or due is None:
            break
        gaps.append(due - last)
        last = due
    return min(gaps, default=None)


# ---------------------------------------------------------------- local time to instants


def _next_fixed(fields: str, zone: ZoneInfo, after: datetime) -> datetime | None:
    """Map matching local times to instants until one lies ahead.

    More than one step happens only after an overlap (the local times of its second pass belong to
    the first) and after a gap (whose times share an instant).
    """
    local: datetime | None = after.astimezone(zone).replace(tzinfo=None)
    while local is not None and (local := _match_after(fields, local)) is not None:
        due = _instant_of(local, zone)
        if due > after:
            return due
    return None


def _next_elapsed(fields: str, zone: ZoneInfo, after: datetime) -> datetime | None:
    """Follow the local clock through the periods in which its offset stays the same.

    Within a period local time is UTC plus a constant. If it ends before the match, the search goes
    on from what the clock shows next, which after an overlap is an earlier time.
    """
    begin, offset = after, _offset(zone, after)
    local = (begin + offset).replace(tzinfo=None)
    while (match := _match_after(fields, local)) is not None:
        due = match.replace(tzinfo=UTC) - offset
        change = _first_change(zone, begin, due)
        if change is None:
            return due
        begin, offset = change, _offset(zone, change)
        local = (begin + offset - _SECOND).replace(tzinfo=None)
    return None


def _instant_of(local: datetime, zone: ZoneInfo) -> datetime:
    """Return when the zone's clock first shows `local`, or the first instant after its gap."""
    # PEP 495: fold 0 uses the offset from before a transition, fold 1 the one from after it.
    before = local.replace(tzinfo=zone, fold=0).astimezone(UTC)
    behind = local.replace(tzinfo=zone, fold=1).astimezone(UTC)
    if behind >= before:
        return before
    return _first_change(zone, behind, before) or before


def _first_change(zone: ZoneInfo, begin: datetime, end: datetime) -> datetime | None:
    """Return the first instant in (begin, end] with another offset than at `begin`.

    Looks once a week, then bisects to the second: no zone changes twice in a week.
    """
    offset, low = _offset(zone, begin), begin
    while low < end:
        high = min(low + _WEEK, end)
        if _offset(zone, high) == offset:
            low = high
            continue
        earliest, latest = math.floor(low.timestamp()), math.ceil(high.timestamp())
        while latest - earliest > 1:
            middle = (earliest + latest) // 2
            if _offset(zone, datetime.fromtimestamp(middle, UTC)) == offset:
                earliest = middle
            else:
                latest = middle
        return datetime.fromtimestamp(latest, UTC)
    return None


def _offset(zone: ZoneInfo, instant: datetime) -> timedelta:
    offset = instant.astimezone(zone).utcoffset()
    assert offset is not None  # ZoneInfo always knows it; the type is tzinfo's
    return offset


# ---------------------------------------------------------------- cronsim, on bare local time


def _match_after(fields: str, local: datetime) -> datetime | None:
    """Return the first naive local time after `local` that matches, by the calendar alone."""
    # A moved copy of the parsed expression: parsing costs ten times as much as a step. Without a
    # zone cronsim applies no daylight-saving rule of its own.
    matcher = copy(_matcher(fields))
    matcher.dt = local.replace(microsecond=0)
    return next(matcher, None)


@lru_cache(maxsize=4096)
def _matcher(fields: str) -> CronSim:
    return CronSim(fields, datetime(2000, 1, 1))  # noqa: DTZ001 - local time, on purpose
