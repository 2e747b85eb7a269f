"""The ticks of timers on a virtual clock: what `advance` passes on its way is due, and fires.

Every instant ticks on time, so `missed=` decides nothing here. Not here: setting the clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime

from turnout.service.domain.trigger import Trigger
from turnout.service.intake.emitter import TriggerEmitter
from turnout.triggers.calendar import Every
from turnout.triggers.timers import Timer


class Ticks:
    """What comes due after an instant; `began_at` is when the service under test was started."""

    def __init__(self, triggers: Iterable[Trigger], after: datetime, began_at: datetime) -> None:
        self._timers = [
            _counted_from(began_at, each) for each in triggers if isinstance(each, Timer)
        ]
        self._last = {timer.name: after for timer in self._timers}

    def next_due(self) -> datetime | None:
        """Return when the next timer ticks."""
        return min((at for at, _, _ in self._coming()), default=None)

    async def tick(self, now: datetime, emitters: Mapping[str, TriggerEmitter]) -> None:
        """Emit what is due by `now`; a paused timer passes it over."""
        for at, due, timer in self._coming():
            if at > now:
                continue
            self._last[timer.name] = due
            emitter = emitters.get(timer.name)
            if emitter is not None and not emitter.status.paused:
                await emitter([timer.event(due)])

    def _coming(self) -> list[tuple[datetime, datetime, Timer]]:
        found = []
        for timer in self._timers:
            due = timer.schedule.next_after(self._last[timer.name])
            if due is not None:
                found.append((timer.starts_at(due), due, timer))
        return found


def _counted_from(began_at: datetime, timer: Timer) -> Timer:
    """Return a timer with `start="now"` as one that counts from when the service began."""
    if timer.from_start and isinstance(timer.schedule, Every):
        return replace(timer, schedule=replace(timer.schedule, start=began_at.isoformat()))
    return timer
