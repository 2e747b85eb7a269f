"""What the service gives an attempt, to run and record its steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from turnout.service.domain.event import Event
from turnout.service.domain.resource import Resources
from turnout.service.domain.run import Run
from turnout.service.flowcontrol.gate import NamedGates
from turnout.service.journal.contract import Steps
from turnout.service.journal.records import Claim, StepRecord
from turnout.service.pools import Pools

if TYPE_CHECKING:  # flow files import this module; these two cost half their start-up time
    from turnout.service.settings import Settings
    from turnout.service.telemetry.metrics import Metrics
    from turnout.service.telemetry.traces import Tracer

Sleep = Callable[[float], Coroutine[Any, Any, None]]
"""How a step waits between its tries, in seconds; a test may replace it."""


@dataclass(frozen=True, slots=True)
class Services:
    """What an attempt needs from the service to run and record its steps.

    `now` is the engine's time, and `wall` the wall clock, which others' dates mean. `named` are the
    limits that flows and tasks share, and `budgets` the periods of budgets, with where each was
    declared first. In a `dry_run` only what reads is done. Without a `tracer` nothing is traced.
    """

    journal: Steps
    pools: Pools
    settings: Settings
    metrics: Metrics
    now: Callable[[], datetime]
    wall: Callable[[], datetime]
    resources: Resources | None = None
    sleep: Sleep = asyncio.sleep
    host: RunHost | None = None
    named: NamedGates = field(default_factory=dict)
    budgets: dict[str, tuple[timedelta, str]] = field(default_factory=dict)
    dry_run: LeavesOut | None = None
    tracer: Tracer | None = None


class RunHost(Protocol):
    """The service as a run sees it; what it does is stored together with the step that asks."""

    async def start(
        self, claim: Claim, step: StepRecord, flow: str, event: Event, race: str | None = None
    ) -> None:
        """Start the child run `step.origin` of a flow for `event`, and wait for its end.

        `race` is the step that awaits it together with others.
        """

    async def emit(self, claim: Claim, step: StepRecord, again: StepRecord, event: Event) -> None:
        """Store an event and start the flows that listen for its type.

        `again` is recorded instead of `step` if the event was stored before. Raises `Fail`, and
        records no step, if its id was used for another event.
        """

    async def end_children(self, claim: Claim) -> list[str]:
        """Cancel the children that an ending run waits for.

        Returns the steps of the children whose undo it has to await.
        """

    def tell_cancelled(self, runs: Iterable[Run]) -> None:
        """Stop child runs that were cancelled in the journal."""

    def watch(self, shape: tuple[str, ...]) -> None:
        """Compare these fields of a trigger's events from now on: (trigger, field…)."""

    def link(self, run_id: str, key: str, until: datetime, asked_at: datetime) -> str:
        """Return the signed address where a person answers an approval."""


class LeavesOut(Protocol):
    """A dry run as steps see it: what would change something is left out."""

    def performs(self, call: Any) -> bool:
        """Whether the task of a step is called."""

    def instead(self, call: Any, kind: str, words: str | None = None) -> Any:
        """List what a step would do, and return what stands for its result."""
