"""A time of day by which a run of a flow has succeeded: `deadline("06:00", tz=, days=)`.

Pure: instants in, instants out. Not here: whether a deadline was met (`alerts`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any

from .errors import SetupError
from .zones import load_zone

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
EVERY_DAY = frozenset(range(7))

_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")
_ONE_DAY = timedelta(days=1)
_MOST_DAYS = 9
"""A week, and what a zone's change of offset may put a day off."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A time of day in a zone, on some days of the week (0 is Monday)."""

    at: time
    zone: str
    days: frozenset[int]

    @property
    def words(self) -> str:
        """The deadline in words: `06:00 Europe/Berlin, mon tue`."""
        named = (
            "" if self.days == EVERY_DAY else f", {' '.join(DAYS[n] for n in sorted(self.days))}"
        )
        return f"{self.at:%H:%M} {self.zone}{named}"

    def latest(self, now: datetime) -> datetime:
        """Return the last deadline that has passed by `now`, in UTC."""
        return next(self.back_from(now))

    def back_from(self, now: datetime) -> Iterator[datetime]:
        """Yield the deadlines that have passed by `now`, the last one first."""
        day = self._local(now)
        while day.year > 1:
            instant = self._on(day)
            if instant is not None and instant <= now:
                yield instant
            day -= _ONE_DAY

    def next_after(self, now: datetime) -> datetime:
        """Return the first deadline after `now`, in UTC."""
        first = self._local(now) - _ONE_DAY
        days = (self._on(first + n * _ONE_DAY) for n in range(_MOST_DAYS + 1))
        return next(each for each in days if each is not None and each > now)

    def day_before(self, instant: datetime) -> datetime:
        """Return the same time of day a day before a deadline: the first run that counts for it."""
        return self._at(instant.astimezone(load_zone(self.zone)).date() - _ONE_DAY)

    def _local(self, now: datetime) -> date:
        """Return the day after that of `now` in the zone, so that no deadline is left out."""
        return now.astimezone(load_zone(self.zone)).date() + _ONE_DAY

    def _on(self, day: date) -> datetime | None:
        return self._at(day) if day.weekday() in self.days else None

    def _at(self, day: date) -> datetime:
        """Return the instant of a day; a time that a zone skips is as late as if it did not."""
        return datetime.combine(day, self.at, load_zone(self.zone)).astimezone(UTC)


def deadline(at: str, *, tz: str | tzinfo = "UTC", days: str | None = None) -> Deadline:
    """Alert when no run has succeeded by a time of day: `deadline("06:00", tz="Europe/Berlin")`.

    It goes to `@flow(deadline=…)`. What counts is a run that was accepted within the day before it
    and has succeeded by then: a run that was late yesterday does not count for today. It is judged
    also when nothing has started, the flow is paused, or the service was down: then within 5 s of
    its start, once for all that was missed.

    * `at`: hours and minutes, `"06:00"`
    * `tz`: a zone's name, or a `tzinfo`. On the day that a zone's clock goes forward over the time,
      the deadline is an hour later; on the day that it shows the time twice, it is the first
    * `days`: names and ranges, such as `"mon-fri"` or `"sat,sun"`; every day by default

    Raises `SetupError` for a time, a zone or days that do not exist.

    ```python
    from turnout import cron, deadline, flow, notify, secret


    @flow(
        on=cron("0 2 * * *", tz="Europe/Berlin"),
        deadline=deadline("06:00", tz="Europe/Berlin", days="mon-fri"),
        on_failure=notify.slack(secret("CHAT_URL")),
    )
    async def close_the_books() -> None: ...
    ```
    """
    found = _TIME.fullmatch(str(at))
    if found is None:
        raise SetupError(f'deadline({at!r}): write a time of day, hours and minutes: "06:00"')
    try:
        load_zone(str(tz))
    except SetupError as error:
        raise SetupError(f"deadline({at!r}, tz=…): {error.message}") from None
    return Deadline(time(int(found[1]), int(found[2])), str(tz), _days(at, days))


def _days(at: str, days: Any) -> frozenset[int]:
    if days is None:
        return EVERY_DAY
    chosen: set[int] = set()
    try:
        for part in days.lower().replace(" ", "").split(","):
            first, _, last = part.partition("-")
            begin, end = DAYS.index(first), DAYS.index(last or first)
            chosen.update(n % 7 for n in range(begin, (end if end >= begin else end + 7) + 1))
    except (AttributeError, ValueError):
        raise SetupError(
            f"deadline({at!r}, days={days!r}): write names and ranges of {', '.join(DAYS)}, such "
            'as "mon-fri" or "sat,sun"'
        ) from None
    return frozenset(chosen)
