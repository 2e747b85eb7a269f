"""How far a timer has ticked, by its stored positions: where to go on after a start or a seek.

Position `tick` is the due instant of the last tick (at first, of the first start), `schedule` the
schedule at that time, `start` the first start, and `ahead` a last tick that was not believed
because the clock showed an earlier time.

Pure decisions about the clock's time. Not here: waiting and emitting (`timers`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from turnout.service.domain.errors import Refused, TriggerError
from turnout.service.domain.trigger import Seek, SeekPlan

from .calendar import Schedule

TICK = "tick"
START = "start"
SCHEDULE = "schedule"
AHEAD = "ahead"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a timer goes on: after `last`, with `fresh` to store before the first tick.

    `ahead` is a last tick that is not believed until the clock has reached it; `disbelieved` is set
    when that was decided just now. `owes_nothing` says that no instant before `last` counts.
    """

    last: datetime
    ahead: datetime | None = None
    disbelieved: datetime | None = None
    owes_nothing: bool = False
    fresh: Mapping[str, str | None] = field(default_factory=dict)


def resume(
    name: str, schedule: Schedule, written: str, stored: Mapping[str, str], now: datetime
) -> Position:
    """Decide where to go on after a start; `written` shows whether the schedule changed.

    Raises `TriggerError` for a position that is not an instant.
    """
    fresh: dict[str, str | None] = {}
    if stored.get(SCHEDULE) != written:
        fresh[SCHEDULE] = written
    # Journals older than stored schedules cannot show a change.
    is_changed = stored.get(SCHEDULE, written) != written
    last = _read(name, stored, TICK)
    ahead = None if is_changed else _read(name, stored, AHEAD)
    if last is None or (is_changed and last < now):
        last = now
        fresh[TICK] = written_instant(now)
    disbelieved = last if is_ahead(schedule, last, now) else None
    if disbelieved is not None:
        last, ahead = now, max(disbelieved, ahead or disbelieved)
        fresh[TICK] = written_instant(now)
        fresh[AHEAD] = written_instant(ahead)
    if is_changed and AHEAD in stored and ahead is None:
        fresh[AHEAD] = None
    return Position(last, ahead, disbelieved, owes_nothing=TICK in fresh, fresh=fresh)


def begin(interval: timedelta, stored: str | None, now: datetime) -> str:
    """Return where intervals are counted from: the first start, unless it is ahead of the clock."""
    begun = None if stored is None else _instant(stored)
    if stored is None or begun is None or begun - now > interval:
        return written_instant(now)
    return stored


def is_ahead(schedule: Schedule, last: datetime, now: datetime) -> bool:
    """Whether the last tick lies ahead of the clock by more than an interval of its schedule."""
    if last <= now or (due := schedule.next_after(now)) is None or due >= last:
        return False
    following = schedule.next_after(due)
    return following is None or following <= last


def plan_seek(name: str, seek: Seek, stored: Mapping[str, str]) -> SeekPlan:
    """Move the last tick to an instant that is not ahead of the clock.

    It moves back only from a last tick that is ahead of the clock: ticks that have run would be the
    same events again. Raises `Refused`.
    """
    now, last = seek.asked_at, _read(name, stored, TICK)
    to = _instant(seek.to)
    if seek.partition is not None or to is None:
        raise Refused(
            f"cannot seek timer {name!r} to {seek.to!r}: use now, or an instant with its zone such "
            "as 2026-01-31T09:00:00Z"
        )
    if to > now:
        raise Refused(
            f"timer {name!r} cannot be moved ahead of the clock; to skip ticks, pause it, and "
            "seek it to now before you resume it"
        )
    if last is not None and to < min(last, now):
        raise Refused(
            f"timer {name!r} has already ticked up to {written_instant(last)}; to run an earlier "
            "tick again, use `turnout replay EVENT`"
        )
    before = "never ticked" if last is None else f"ticked up to {written_instant(last)}"
    return SeekPlan(
        positions={TICK: written_instant(to), AHEAD: None},
        sentences=[
            f"{before}: continues from {written_instant(to)}; ticks due before that are dropped"
        ],
    )


def written_instant(instant: datetime) -> str:
    """Write an instant in UTC, as in positions, events and messages."""
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _read(name: str, stored: Mapping[str, str], partition: str) -> datetime | None:
    if partition not in stored:
        return None
    instant = _instant(stored[partition])
    if instant is None:
        raise TriggerError(f"{name}: the stored position {stored[partition]!r} is not an instant")
    return instant


def _instant(text: str) -> datetime | None:
    """Read an instant with its zone, in UTC; None for any other text."""
    try:
        instant = datetime.fromisoformat(text)
        return None if instant.tzinfo is None else instant.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
