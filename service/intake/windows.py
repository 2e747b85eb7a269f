"""Windows close at their deadlines: here is the one timer for all of them.

Windows are rows of the journal; memory holds the next deadline only, and nothing while none is
open. A run that fires is queued by the write that closes its window. Not here: what becomes of a
window (its rule, asked by the journal), and the events that join (`router`, `submit`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime

from turnout.service.dispatch.attempts import until_writable
from turnout.service.dispatch.dispatcher import Dispatcher
from turnout.service.domain.errors import JournalFull
from turnout.service.journal.contract import Journal
from turnout.service.journal.records import NOTHING, ClosedWindows, FiredRun, Told
from turnout.service.project import Project

BATCH = 200
"""How many windows one write closes: more would keep other writes waiting."""

LONGEST_SECONDS = 60.0  # the clock may be set meanwhile
SHORTEST_SECONDS = 0.05


class WindowDeadlines:
    """Closes windows when they are due.

    `told` says of some flows which of their windows may close now. `held` is called with those that
    have others that are due, and says when to ask again.
    """

    def __init__(
        self,
        journal: Journal,
        dispatcher: Dispatcher,
        tasks: asyncio.TaskGroup,
        *,
        project: Callable[[], Project],
        now: Callable[[], datetime],
        told: Callable[[], Mapping[str, Told]] = lambda: NOTHING,
        held: Callable[[Collection[str]], datetime | None] = lambda _flows: None,
    ) -> None:
        self._journal = journal
        self._dispatcher = dispatcher
        self._tasks = tasks
        self._project = project
        self._now = now
        self._told = told
        self._held = held
        self._next: datetime | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._asked = False
        self._closing = False
        self._stopped = False

    @property
    def next_due_at(self) -> datetime | None:
        """The next deadline, as far as is known; None while no window has one."""
        return self._next

    @property
    def at_work(self) -> bool:
        """Whether windows are being closed now."""
        return self._closing

    def joined(self, deadline: datetime) -> None:
        """Take note of the deadline of a window that an event has joined."""
        if self._next is None or deadline < self._next:
            self._arm(deadline)

    def recheck(self) -> None:
        """Close what is due now: the service starts, flows have changed, or the clock was set."""
        if self._stopped:
            return
        self._asked = True
        if not self._closing:
            self._closing = True
            self._tasks.create_task(self._close())

    def close(self) -> None:
        """Close no window any more: stopping never cuts one short."""
        self._stopped = True
        self._disarm()

    async def _close(self) -> None:
        """Close what is due, and wait for the next deadline."""
        next_due: datetime | None = None
        try:
            while self._asked and not self._stopped:
                self._asked = False
                flows = {flow.name: flow.firing for flow in self._project().flows.values()}
                try:
                    closed = await self._journal.close_due(
                        flows, now=self._now(), limit=BATCH, told=self._told()
                    )
                except JournalFull:
                    await until_writable(self._journal)
                    self._asked = True
                    continue
                self.begin(closed)
                self._asked = self._asked or closed.more
                next_due = _first(closed.next_due_at, self._held(closed.held))
        finally:
            self._closing = False
        if not self._stopped:
            self._arm(next_due)

    def begin(self, closed: ClosedWindows) -> None:
        """Queue the runs of windows that have closed, and end what their conditions have ended."""
        self._dispatcher.ended_for(closed)
        self.fired(closed.fired)

    def fired(self, runs: Sequence[FiredRun]) -> None:
        """Let runs that were queued as their windows fired start as soon as a slot is free."""
        for run in runs:
            self._dispatcher.fired(run.queued)

    def _arm(self, due_at: datetime | None) -> None:
        """Wake up at a deadline, in a minute at most."""
        self._disarm()
        self._next = due_at
        if due_at is not None:
            left = (due_at - self._now()).total_seconds()
            seconds = min(max(left, SHORTEST_SECONDS), LONGEST_SECONDS)
            self._timer = asyncio.get_running_loop().call_later(seconds, self.recheck)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _first(one: datetime | None, other: datetime | None) -> datetime | None:
    return min((each for each in (one, other) if each is not None), default=None)
