"""Flows that need a dependency, driven attempt by attempt without a journal."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.support.gates import NOW, Asking, declare
from turnout import dependency
from turnout.service.domain.breaker import StoredBreaker
from turnout.service.domain.run import Outcome, RunError, RunState
from turnout.service.flowcontrol.admission import Admission, FlowGates

SECOND = timedelta(seconds=1)
CRM = dependency("crm", open_after="50% of 4", probe="30s")


def broken(*names: str) -> Outcome:
    """Return the outcome of an attempt that these dependencies have failed."""
    error = RunError("ConnectionError", "refused")
    return Outcome(state=RunState.FAILED, error=error, failed_dependencies=names)


DONE = Outcome(state=RunState.SUCCEEDED)
SILENT = Outcome(state=RunState.SKIPPED)


@dataclass
class Flows:
    """Flows that need dependencies, on a clock of their own."""

    policies: dict[str, dict[str, Any]]
    now: datetime = NOW
    admission: Admission = field(default_factory=lambda: Admission(100))
    written: list[StoredBreaker] = field(default_factory=list)
    freed: list[str] = field(default_factory=list)
    count: int = 0

    def __post_init__(self) -> None:
        self.breakers = self.admission.breakers
        self.breakers.changed, self.breakers.freed = self.written.append, self.freed.append
        self.gates: dict[str, FlowGates] = {}
        self.serve(self.policies)

    def serve(self, policies: dict[str, dict[str, Any]]) -> None:
        self.policies = policies
        self.flows = {name: declare(name, **policy) for name, policy in policies.items()}
        self.breakers.serve(self.flows.values(), self.now)
        for name, flow in self.flows.items():
            self.gates.setdefault(name, FlowGates(self.admission)).declare(flow, self.now)

    def restarted(self) -> Flows:
        """Return the same flows in a new process, as the journal knows their breakers."""
        kept = {breaker.name: breaker for breaker in self.written}
        again = Flows({}, now=self.now, written=list(self.written))
        again.breakers.restore(kept.values(), self.now)
        again.serve(self.policies)
        return again

    def pass_(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def start(self, flow: str = "bill", *, since: datetime | None = None) -> Asking:
        run = self.ask(flow, since=since)
        assert run.token, "it was refused"
        return run

    def ask(self, flow: str = "bill", *, since: datetime | None = None) -> Asking:
        self.count += 1
        run = Asking(str(self.count), flow=flow, queued_at=since)
        self.answer = self.gates[flow].admit(run, self.now)
        return run

    def waits_until(self, flow: str = "bill", *, since: datetime | None = None) -> datetime | None:
        run = self.ask(flow, since=since)
        assert not run.token, "it was let pass"
        assert self.answer is not None and self.answer.gate.name == "dependency"
        assert isinstance(self.answer.answer, datetime)
        return self.answer.answer

    def end(self, run: Asking, outcome: Outcome | None = None) -> None:
        if outcome is not None:
            self.breakers.ended(run, self.flows[run.flow].needs, outcome, self.now)
        self.gates[run.flow].leave(run, keeps_key=False)

    def run(self, outcome: Outcome, flow: str = "bill") -> None:
        self.end(self.start(flow), outcome)

    def open(self) -> None:
        for _ in range(2):
            self.run(broken("crm"))
        assert self.state == "open"

    @property
    def state(self) -> str:
        return self.breakers.statuses()[0].stored.state.value


@pytest.fixture
def flows() -> Flows:
    return Flows({"bill": {"needs": CRM}, "load": {"needs": CRM}, "free": {}})
