"""The timer triggers: `cron`, `every` and `at` turn the passing of time into events.

The due instant of the last tick is stored, as position `tick`, in one transaction with the tick's
event, and ticks only go up from there: neither a restart nor a clock set back repeats a tick. The
event id is made of trigger and due instant, and the body of the due instant alone, so a tick that
fires again is the same event. A tick that cannot be stored is retried until it is: ticks are never
lost silently. Whatever comes due meanwhile counts as missed, and so does all that comes due while
an operator has paused the timer.

If the clock was wrong: when a trigger starts and its last tick lies ahead of the clock by more than
one interval, the clock is believed and ticks go on from now (`resume`). While the process runs,
time never goes back: the trigger reports itself down until the clock has caught up, and an operator
may seek it to now. A changed schedule does not make up for the time before the change.

A tick that stands for missed ones has their number as extension `missed`; missed instants without a
tick are counted in `turnout_events_total{result="missed"}`. The very first start makes up for
nothing.

Not here: when something is due (`calendar`), what becomes of missed ticks (`missed_ticks`), and
where a timer goes on after a start or a seek (`timer_positions`).
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from datetime import datetime, timedelta, tzinfo
from typing import Any, Literal, Never
from urllib.parse import quote

from turnout.service.domain.errors import JournalFull, Overloaded, Paused, SetupError
from turnout.service.domain.event import Event
from turnout.service.domain.payload import write_json
from turnout.service.domain.trigger import Emitter, Seek, SeekPlan
from turnout.service.domain.units import format_duration, parse_duration
from turnout.service.telemetry.logs import get_logger

from .calendar import Cron, Every, Once, Schedule, cron_fields, shortest_gap
from .identity import refuse_options
from .missed_ticks import MAX_MISSED, ON_TIME, Missed, came_due, decide
from .timer_positions import (
    AHEAD,
    START,
    TICK,
    Position,
    begin,
    is_ahead,
    plan_seek,
    resume,
    written_instant,
)

log = get_logger("turnout.timers")

TYPE = "turnout.timer.tick"
"""The CloudEvents type of every tick."""

_LOOK_SECONDS = 30.0
"""A waiting trigger looks at the clock at least this often, to notice a clock that was set."""

_LAST_STRETCH_SECONDS = 0.25
"""The last part of a wait is one sleep of at most this, too short for clocks to drift apart."""

_RETRY_SECONDS = (0.1, 5.0)

_IDENTITY = "a tick is its due instant, which comes once; leave it out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timer:
    """A read trigger that emits one event for each due instant of its schedule.

    `from_start` counts the intervals of `every` from the first start of the service with this
    timer, stored as position `start`. `jitter` delays each tick by a fraction of it that depends
    only on name and due instant.
    """

    kind: Literal["cron", "every", "at"]
    name: str
    schedule: Cron | Every | Once
    missed: Missed = "run_once"
    missed_limit: int = 100
    jitter: timedelta = timedelta(0)
    from_start: bool = False

    def check(self) -> None:
        """Raise `SetupError` for a schedule or settings that cannot work."""
        self.schedule.check()
        if self.missed not in ("run_once", "skip", "run_all"):
            raise SetupError(
                f'{self.name}: missed={self.missed!r} is not one of "run_once", "skip", "run_all"'
            )
        if self.missed_limit not in range(1, MAX_MISSED + 1):
            raise SetupError(f"{self.name}: missed_limit must be from 1 to {MAX_MISSED}")
        gap = shortest_gap(self.schedule) if self.jitter else None
        if gap is not None and self.jitter >= gap:
            raise SetupError(
                f"{self.name}: jitter={format_duration(self.jitter)!r} must be shorter than the "
                f"shortest time between two ticks, {format_duration(gap)}, or they would overtake "
                "each other"
            )
        if not self.name.strip():
            raise SetupError(f"{self.kind}(…, name={self.name!r}): a name has at least one letter")

    @property
    def written_schedule(self) -> str:
        """Everything that decides when a tick is due, as text."""
        parts = [str(part) for part in astuple(self.schedule) if part is not None]
        return " ".join([self.kind, *parts, *(["from start"] if self.from_start else [])])

    def starts_at(self, due: datetime) -> datetime:
        """Return when the tick due at `due` is emitted: the same after every restart."""
        if not self.jitter:
            return due
        seed = hashlib.blake2b(
            f"{self.name}\n{written_instant(due)}".encode(), digest_size=8
        ).digest()
        return due + self.jitter * (int.from_bytes(seed) / 2**64)

    def next_at(self, now: datetime, positions: Mapping[str, str]) -> datetime | None:
        """Return when the next tick is emitted, None if none comes."""
        schedule = self.schedule
        if self.from_start and isinstance(schedule, Every):
            schedule = replace(schedule, start=begin(schedule.interval, positions.get(START), now))
        due = schedule.next_after(now)
        return None if due is None else self.starts_at(due)

    def event(self, due: datetime, missed: int = 0) -> Event:
        """Return the tick due at `due`; `missed` is how many missed ticks it stands for."""
        digest = hashlib.blake2b(self.name.encode(), digest_size=4).hexdigest()
        # The id is short and safe in a URL path; trigger and source have the readable name.
        return Event(
            id=f"{self.kind}-{digest}-{written_instant(due).replace('-', '').replace(':', '')}",
            source=f"turnout:timers/{quote(self.name, safe='')}",
            type=TYPE,
            time=due,
            datacontenttype="application/json",
            body=write_json({"due": written_instant(due)}),
            extensions={"missed": str(missed)} if missed else {},
            trigger=self.name,
        )

    async def plan(
        self, seek: Seek, positions: Mapping[str, str], connection: Mapping[str, Any]
    ) -> SeekPlan:
        """Plan a seek; raises `Refused` for an instant that is ahead or has ticked."""
        return plan_seek(self.name, seek, positions)

    async def run(self, emit: Emitter) -> None:
        """Emit ticks until cancelled."""
        watch = await _start(self, emit)
        emit.up()
        while True:
            due = watch.schedule.next_after(watch.last)
            if due is None:
                await asyncio.Event().wait()  # nothing is due ever again
                continue
            await watch.sleep_until(self.starts_at(due))
            await watch.tick(due)


def cron(
    expression: str,
    *,
    tz: str | tzinfo = "UTC",
    missed: Missed = "run_once",
    missed_limit: int = 100,
    jitter: str | timedelta = timedelta(0),
    name: str | None = None,
    **options: Never,
) -> Timer:
    """Tick when the clock of a zone matches: `cron("0 9 * * 1-5", tz="Europe/Berlin")`.

    The default zone is UTC. A fixed time of day ticks once a day, also when the clock changes for
    daylight saving. A tick is stored before its run starts, and comes once.

    * `expression`: 5 fields (minute, hour, day, month, weekday), 6 with seconds first, or a name
      such as `@daily`
    * `tz`: a zone's name, or a `tzinfo`
    * `missed`: what to do about ticks that were missed while the service was stopped: `"run_once"`
      (one run for all of them), `"skip"`, or `"run_all"`
    * `missed_limit`: how many missed ticks `"run_all"` makes up for: the latest, at most 10,000
    * `jitter`: delays each tick by a fraction of that time, which is the same after a restart
    * `name`: the trigger's name, the key of its position and metrics

    Raises `SetupError` for an expression that cannot be read, and for `id=` and `dedupe=`: a tick
    is its due instant.

    ```python
    from turnout import cron, flow


    @flow(on=cron("30 2 * * *", tz="Europe/Berlin", missed="skip"))
    async def nightly() -> str:
        return "done"
    ```
    """
    refuse_options("cron", options, _IDENTITY)
    fields = cron_fields(expression)
    return Timer(
        kind="cron",
        name=name if name is not None else f"cron:{fields}",
        schedule=Cron(fields, str(tz)),
        missed=missed,
        missed_limit=missed_limit,
        jitter=parse_duration(jitter),
    )


def every(
    interval: str | timedelta,
    *,
    start: str | datetime | None = None,
    tz: str | tzinfo | None = None,
    missed: Missed = "run_once",
    missed_limit: int = 100,
    jitter: str | timedelta = timedelta(0),
    name: str | None = None,
    **options: Never,
) -> Timer:
    """Tick after each interval: `every("15m")` is each quarter of an hour, in UTC.

    A tick is stored before its run starts, and comes once.

    * `interval`: how long, such as `"15m"`; whole ones since 1970 unless `start` says otherwise
    * `start`: `"now"` counts from the first start of the service, over restarts;
      `"2090-12-01T09:00"`, read in `tz`, from that instant
    * `tz`: a zone's name, for `start`
    * `missed`: what to do about ticks that were missed while the service was stopped: `"run_once"`
      (one run for all of them), `"skip"`, or `"run_all"`
    * `missed_limit`: how many missed ticks `"run_all"` makes up for: the latest, at most 10,000
    * `jitter`: delays each tick by a fraction of that time, which is the same after a restart
    * `name`: the trigger's name, the key of its position and metrics

    Raises `SetupError` for what is no interval, and for `id=` and `dedupe=`: a tick is its due
    instant.

    ```python
    from turnout import every, flow


    @flow(on=every("15m", jitter="30s"))
    async def poll() -> str:
        return "polled"
    ```
    """
    refuse_options("every", options, _IDENTITY)
    length = parse_duration(interval)
    from_start = start == "now"
    return Timer(
        kind="every",
        name=name if name is not None else f"every:{format_duration(length)}",
        schedule=Every(length, None if from_start else _written(start), _zone(tz)),
        missed=missed,
        missed_limit=missed_limit,
        jitter=parse_duration(jitter),
        from_start=from_start,
    )


def at(
    when: str | datetime,
    *,
    tz: str | tzinfo | None = None,
    missed: Literal["run_once", "skip"] = "run_once",
    name: str | None = None,
    **options: Never,
) -> Timer:
    """Tick once, at an instant: `at("2090-12-01T09:00", tz="Europe/Berlin")`.

    An instant already past when the service first starts with it never ticks.

    * `when`: a date and time, read in `tz`, or an aware `datetime`
    * `tz`: a zone's name; needed for text without an offset
    * `missed`: what happens if it passed while the service was stopped: `"run_once"` or `"skip"`
    * `name`: the trigger's name, the key of its position and metrics

    Raises `SetupError` for what is no instant, and for `id=` and `dedupe=`: a tick is its due
    instant.

    ```python
    from turnout import at, flow


    @flow(on=at("2090-12-01T09:00", tz="Europe/Berlin"))
    async def launch() -> str:
        return "launched"
    ```
    """
    refuse_options("at", options, _IDENTITY)
    text = _written(when)
    if text is None:
        raise SetupError('at(None): write a time, like at("2026-12-01T09:00", tz="UTC")')
    return Timer(
        kind="at",
        name=name if name is not None else f"at:{text}",
        schedule=Once(text, _zone(tz)),
        missed=missed,
    )


# ---------------------------------------------------------------- watching


async def _start(timer: Timer, emit: Emitter) -> _Watch:
    """Return the watch over `timer`, from where the last one stopped or, at first, from now."""
    stored, now = await emit.positions(), emit.now()
    schedule = timer.schedule
    fresh: dict[str, str | None] = {}
    if timer.from_start and isinstance(timer.schedule, Every):
        begun = begin(timer.schedule.interval, stored.get(START), now)
        schedule = replace(timer.schedule, start=begun)
        fresh[START] = begun
    position = resume(timer.name, schedule, timer.written_schedule, stored, now)
    fresh |= position.fresh
    if position.disbelieved is not None:
        log.error(
            "timer.resumed_from_clock",
            trigger=timer.name,
            clock=written_instant(now),
            last_tick=written_instant(position.disbelieved),
        )
    watch = _Watch(timer, emit, schedule, position)
    if not fresh.items() <= stored.items():
        await watch.store([], fresh)
    if position.owes_nothing and timer.kind == "at" and schedule.next_after(position.last) is None:
        emit.reject("missed")
    return watch


class _Watch:
    """A running timer: what it has ticked up to, and the waits in between."""

    def __init__(self, timer: Timer, emit: Emitter, schedule: Schedule, position: Position) -> None:
        self.schedule = schedule
        self.last = position.last
        self._ahead = position.ahead
        self._timer = timer
        self._emit = emit
        self._is_down = False

    async def sleep_until(self, instant: datetime) -> None:
        """Return when the wall clock reaches `instant`, even if the clock is set meanwhile."""
        while (left := (instant - self._now()).total_seconds()) > 0:
            if left <= _LAST_STRETCH_SECONDS:
                await asyncio.sleep(left)
            else:
                # Random, so that a thousand timers do not look all at once.
                look = _LOOK_SECONDS * random.uniform(0.5, 1.0)
                await asyncio.sleep(min(left - _LAST_STRETCH_SECONDS / 2, look))

    async def tick(self, first: datetime) -> None:
        """Store what came due, `first` and later, as the policy asks, and move past all of it."""
        while not await self._store_due(first):
            await self._until_resumed()

    async def _store_due(self, first: datetime) -> bool:
        """Store what came due until now; False if the timer is paused, and nothing was stored."""
        now = self._emit.now()
        if self._ahead is not None and now >= self._ahead:
            await self._catch_up(self._ahead)
            return True
        timer = self._timer
        keep = timer.missed_limit + 1 if timer.missed == "run_all" else 1
        due = await came_due(self.schedule, timer.starts_at, first, now, keep)
        latest = due.latest[-1]
        ticks = decide(
            due,
            latest_on_time=now - timer.starts_at(latest) <= ON_TIME,
            missed=timer.missed,
            limit=timer.missed_limit,
        )
        events = [timer.event(instant, missed) for instant, missed in ticks.emitted]
        try:
            await self.store(events, {TICK: written_instant(latest)}, gives_up=True)
        except Paused:
            return False
        stored_at = self._emit.now()
        for instant, _ in ticks.emitted:
            self._emit.late((stored_at - timer.starts_at(instant)).total_seconds())
        if ticks.dropped:
            self._emit.reject("missed", ticks.dropped)
        self.last = latest
        return True

    async def _until_resumed(self) -> None:
        """Wait until the timer may emit again: emitting nothing is refused until then."""
        await self.store([], {})

    async def _catch_up(self, ahead: datetime) -> None:
        """Go on after the tick that was not believed: the clock has reached it, so it was right."""
        await self.store([], {TICK: written_instant(ahead), AHEAD: None})
        self.last, self._ahead = ahead, None

    async def store(
        self,
        events: Sequence[Event],
        positions: Mapping[str, str | None],
        *,
        gives_up: bool = False,
    ) -> None:
        """Emit until the journal takes it; any error but a full journal ends the trigger.

        With `gives_up` it raises `Paused` instead of trying on.
        """
        delay, longest = _RETRY_SECONDS
        while True:
            try:
                await self._emit(events, positions)
            except (Overloaded, JournalFull) as refusal:
                if gives_up and isinstance(refusal, Paused):
                    raise
                self._emit.lag("tick", max(len(events), 1))
                await asyncio.sleep(delay)
                delay = min(delay * 2, longest)
            else:
                self._emit.lag("tick", 0)
                return

    def _now(self) -> datetime:
        """Read the clock; report when it was set far back before the last tick."""
        now = self._emit.now()
        is_down = self.last - now > ON_TIME and is_ahead(self.schedule, self.last, now)
        if is_down and not self._is_down:
            self._emit.down(
                f"the clock shows {written_instant(now)}, but the last tick was due "
                f"{written_instant(self.last)}, and no tick comes before that; correct the "
                "clock or, if it is right now, restart the service or run: turnout trigger seek "
                f"{shlex.quote(self._timer.name)} --to now"
            )
        elif self._is_down and not is_down:
            self._emit.up()
        self._is_down = is_down
        return now


def _written(moment: str | datetime | None) -> str | None:
    if isinstance(moment, datetime):
        return moment.isoformat()
    if moment is None or isinstance(moment, str):
        return moment
    raise SetupError(f'{moment!r} is not a time; write it like "2026-12-01T09:00" with tz=')


def _zone(tz: str | tzinfo | None) -> str | None:
    return None if tz is None else str(tz)
