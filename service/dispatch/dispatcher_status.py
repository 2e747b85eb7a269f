"""What the dispatcher tells without doing anything: what runs, what is free, who waits for what."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import datetime

from turnout.service.domain.run import Run, RunState
from turnout.service.domain.waiting import Waiting
from turnout.service.flowcontrol.dependency import Breakers
from turnout.service.flowcontrol.named_limit import NamedLimit
from turnout.service.flowcontrol.use import Use
from turnout.service.journal.records import NewRun

from .attempts import Attempts
from .backpressure import Backpressure
from .causes import waits_for
from .conflicts import Conflict, conflicts
from .scheduling import Scheduler
from .served_flows import ServedFlows
from .uses import uses_now


class DispatcherStatus:
    """The part of the dispatcher that is asked: nothing here changes anything."""

    _scheduler: Scheduler
    _attempts: Attempts
    _flows: ServedFlows
    _now: Callable[[], datetime]
    _stopping: bool

    # ------------------------------------------------------------ flows and rules

    def starts(self, flow: str) -> bool:
        """Whether queued runs may start: the flow is not paused, the service not stopping."""
        return not (self._stopping or self._scheduler.queue(flow).paused)

    def may_start(self, flow: str) -> bool:
        """Whether runs of a flow may start: it is served and not paused."""
        queue = self._scheduler.find(flow)
        return queue is not None and not queue.paused

    def uses(self) -> list[Use]:
        """Return how much of each rule of the served flows is in use."""
        return uses_now(self._flows.by_name, self._scheduler, self._now())

    # ------------------------------------------------------------ runs

    def waits_for(self, run: Run) -> Waiting | None:
        """Return what keeps a run from starting; None if it could not start now anyway."""
        queue = self._scheduler.find(run.flow)
        is_ready = run.state is RunState.QUEUED or run.seq in self._scheduler.known_due
        return waits_for(run, queue, self._now()) if queue is not None and is_ready else None

    @property
    def breakers(self) -> Breakers:
        """The breakers of what flows need."""
        return self._scheduler.breakers

    @property
    def at_rest(self) -> bool:
        """Whether no run could start: all that wait were refused when they asked last."""
        return self._scheduler.at_rest

    def named_limits(self) -> list[tuple[NamedLimit, list[str]]]:
        """Return the limits that flows share by a name, each with these flows."""
        return self._scheduler.named_limits()

    def backpressure(self) -> Backpressure:
        """Return the back-pressure for one trigger whose source keeps unread events."""
        return Backpressure(self._scheduler)

    @property
    def running(self) -> frozenset[str]:
        """The ids of the runs with a running attempt."""
        return self._attempts.runs

    def keeps_slots(self, flow: str) -> bool:
        """Whether waiting runs of a flow keep a slot at a limit."""
        return bool(self._scheduler.queue(flow).gates.held)

    def conflicts(self, run: NewRun | Run) -> list[Conflict]:
        """Return what a run needs to start that others hold until they end."""
        queue = self._scheduler.find(run.flow)
        return [] if queue is None else conflicts(queue, run)

    def holders(self, flow: str, order_key: str) -> Collection[str]:
        """Return the ids of the runs that hold an ordering key; more than one after a rename."""
        return self._scheduler.queue(flow).gates.order.holders(order_key)

    @property
    def known_due(self) -> frozenset[int]:
        """The seqs of the due runs in memory: a gate refuses them, or they are about to start."""
        return self._scheduler.known_due

    @property
    def queue_memory_bytes(self) -> int:
        """The memory of queued runs that need not be read from the journal."""
        return self._scheduler.queue_memory_bytes

    def next_alarm_at(self) -> datetime | None:
        """Return the next instant at which a run asks again that a gate has refused until then."""
        return self._scheduler.next_alarm_at()

    @property
    def free_slots(self) -> int:
        """How many more runs may run at once."""
        return self._scheduler.free_slots

    def held_slots(self) -> Mapping[str, int]:
        """Return how many slots each flow holds."""
        return self._scheduler.held_slots()
