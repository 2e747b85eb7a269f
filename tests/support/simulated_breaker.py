"""What a breaker promises, asked anew over its changes, starts and outcomes that are durable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import ClassVar

from tests.support.dispatch_simulator import S, SimulatedRun
from tests.support.flow_control_simulator import ControlledRun, Others, Rule
from turnout.service.domain.breaker import BreakerState, StoredBreaker

APART = timedelta(seconds=0.1)
"""How far apart runs start that have waited."""


@dataclass(eq=False)
class Needs(Rule):
    """Nothing starts while it is open; then one run alone, until that succeeds.

    It opens after so many `failures` in a row. `began` has the generation in which each attempt
    started, by run and claim, and `outcomes` what those of a generation have said (failed or not).
    """

    name: ClassVar[str] = "needs"

    failures: int
    probe: timedelta
    stored: StoredBreaker | None = None
    next_start: datetime | None = None
    began: dict[str, tuple[int, datetime]] = field(default_factory=dict)
    outcomes: dict[int, list[bool]] = field(default_factory=dict)
    before: StoredBreaker | None = None

    @property
    def generation(self) -> int:
        return 0 if self.stored is None else self.stored.generation

    @property
    def state(self) -> BreakerState:
        return BreakerState.CLOSED if self.stored is None else self.stored.state

    # ------------------------------------------------------------ what becomes durable

    def changed(self, stored: StoredBreaker) -> None:
        """Learn of a change."""
        if stored.generation != self.generation:
            self.before = self.stored
            self.next_start = stored.changed_at
        self.stored = stored

    def started(self, run: ControlledRun, at: datetime) -> None:
        """Learn of a start."""
        if self.state is BreakerState.CLOSED and self._has_waited(run):
            self.next_start = at + APART
        self.began[run.id] = (self.generation, at)

    def ended(self, run: SimulatedRun, failed: bool | None) -> None:
        """Learn of an outcome; None says nothing about the dependency."""
        generation, _ = self.began.pop(run.id, (-1, None))
        if failed is not None:
            self.outcomes.setdefault(generation, []).append(failed)

    def ended_process(self) -> None:
        """Learn that the process is gone: what it counted is forgotten, its state is not."""
        self.began.clear()
        self.outcomes.clear()
        self.before = None
        self.next_start = None if self.stored is None else self.stored.changed_at

    # ------------------------------------------------------------ what must hold

    def delays(self, run: ControlledRun, others: Others, now: datetime) -> bool:
        if self.stored is None or self.state is BreakerState.CLOSED:
            is_early = self.next_start is not None and now < self.next_start
            return is_early and self._has_waited(run)
        if self.state is BreakerState.OPEN:
            assert self.stored.until is not None
            return now < self.stored.until
        return any(self._probes(each, now) for each in others)

    def _has_waited(self, run: SimulatedRun) -> bool:
        asked_at = run.asked_at if isinstance(run, ControlledRun) else None
        since = run.due_at or asked_at or run.accepted_at
        return self.stored is not None and since < self.stored.changed_at

    def _probes(self, run: ControlledRun, now: datetime) -> bool:
        generation, at = self.began.get(run.id, (-1, now))
        is_inside = run.state is S.RUNNING or run.leftovers > 0
        return is_inside and generation == self.generation and now < at + self.probe

    def problem(self) -> str | None:
        """Return what is wrong with the state of the breaker, at rest; None if nothing is."""
        if self.state is BreakerState.CLOSED and self._has_failed(self.generation, self.failures):
            return f"a breaker is closed after {self.outcomes[self.generation]}"
        if self.before is None or self.state is BreakerState.PROBING:
            return None
        last = self.outcomes.get(self.before.generation, [])
        if self.state is BreakerState.CLOSED:
            return None if False in last else f"a breaker is closed by a probe that said {last}"
        needed = self.failures if self.before.state is BreakerState.CLOSED else 1
        is_due = self._has_failed(self.before.generation, needed)
        return None if is_due else f"a breaker has opened after {last}"

    def _has_failed(self, generation: int, times: int) -> bool:
        last: Sequence[bool] = self.outcomes.get(generation, [])
        return any(all(last[at : at + times]) for at in range(len(last) - times + 1))
