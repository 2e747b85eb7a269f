"""What a process is wanted for: by whom it is kept, and when the next one must be there.

The gauge `turnout_wanted` shows it to those who scale a service, and a service with `idle_exit`
goes by it. Not here: whether anybody is connected (`idle`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from turnout.service.dispatch.dispatcher import Dispatcher
from turnout.service.intake.emitter import TriggerEmitter
from turnout.service.journal.contract import Journal
from turnout.service.journal.records import DueCount, NextWake
from turnout.service.operate.upcoming import next_ticks
from turnout.service.project import Project

DEFAULT_SOON = timedelta(minutes=1)


class Wanted:
    """Counts what wants a process now, or within `soon`; nothing of flows that may not start.

    `other_instants` are those at which something else happens by itself: a pause ends, an alert may
    be due.
    """

    def __init__(
        self,
        journal: Journal,
        dispatcher: Dispatcher,
        *,
        project: Callable[[], Project],
        emitters: Callable[[], Mapping[str, TriggerEmitter]],
        now: Callable[[], datetime],
        soon: timedelta,
        other_instants: Callable[[], list[datetime]],
    ) -> None:
        self._journal = journal
        self._dispatcher = dispatcher
        self._project = project
        self._emitters = emitters
        self._now = now
        self._soon = soon
        self._other_instants = other_instants

    async def count(self, counts: Mapping[str, DueCount]) -> int:
        """Return how many runs run, could start, or will soon; a window and a tick count as one.

        `counts` are the due runs of each flow.
        """
        until = self._now() + self._soon
        return (
            len(self._dispatcher.running)
            + self._that_may_start({flow: count.due for flow, count in counts.items()})
            + await self._soon_due(until)
            + self._that_may_start(await self._journal.due_windows(until))
            + await self._ticks(until)
        )

    async def kept_by(self) -> str | None:
        """Return what keeps the process, None if nothing does: it may go until `next_wake`.

        An open window keeps it, and a poll, however far away the next look is.
        """
        now = self._now()
        until = now + self._soon
        counts = {each.flow: each.due for each in await self._journal.due_counts(now)}
        windows = await self._journal.open_windows()
        found = {
            "a run that is running": len(self._dispatcher.running),
            "a run that could start": self._that_may_start(counts),
            "a run that is due soon": await self._soon_due(until),
            "a timer that ticks soon": await self._ticks(until),
            "an open window": self._that_may_start(windows),
            "a run that polls": int(await self._journal.is_polling()),
            "an alert, or the end of a pause": sum(at <= until for at in self._other_instants()),
        }
        return next((what for what, number in found.items() if number), None)

    async def next_wake(self, url: str) -> NextWake:
        """Return what comes next by itself, and when a process must be there for it."""
        now = self._now()
        ticks = await next_ticks(self._project(), self._emitters(), now)
        runs = await self._journal.due_runs(1)
        counts = {each.flow: each.due for each in await self._journal.due_counts(now)}
        instants = [
            *([now] if self._that_may_start(counts) else ()),  # what came as the process ended
            *(tick.at for tick in ticks if any(map(self._dispatcher.may_start, tick.flows))),
            *(run.due_at for run in runs if run.due_at is not None),
            *self._other_instants(),
        ]
        return NextWake(url=url, at=min(instants, default=None), ticks=ticks)

    def _that_may_start(self, by_flow: Mapping[str, int]) -> int:
        return sum(number for flow, number in by_flow.items() if self._dispatcher.may_start(flow))

    async def _soon_due(self, until: datetime) -> int:
        return self._that_may_start(await self._journal.due_between(self._now(), until))

    async def _ticks(self, until: datetime) -> int:
        ticks = await next_ticks(self._project(), self._emitters(), self._now())
        may_start = self._dispatcher.may_start
        return sum(tick.at <= until and any(map(may_start, tick.flows)) for tick in ticks)
