"""Random histories of a circuit breaker against a simulator."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.gates import NOW, Asking
from turnout.service.domain.run import DependencyPause, Outcome, RunState

from .breakers import CRM, DONE, SECOND, SILENT, Flows, broken, flows

__all__ = ["flows"]  # the fixture


@dataclass
class Simulated:
    """The same rules, told differently: which runs may still say something, and who may start."""

    state: str = "closed"
    until: float = 0
    may_say: set[str] = field(default_factory=set)
    last: list[bool] = field(default_factory=list)
    alone: str = ""
    alone_until: float = 0
    closed_at: float = -1
    next_waiting: float = 0

    def may_start(self, now: float, since: float | None) -> bool:
        if self.state == "open":
            return now >= self.until
        if self.state == "probing":
            return not self.alone or now >= self.alone_until
        return since is None or since >= self.closed_at or now >= self.next_waiting

    def start(self, run: str, now: float, since: float | None) -> None:
        if self.state == "open":
            self.turn("probing")
        if self.state == "probing":
            self.alone, self.alone_until = run, now + 30
        elif since is not None and since < self.closed_at and now >= self.next_waiting:
            self.next_waiting = now + 0.1
        self.may_say.add(run)

    def turn(self, state: str) -> None:
        self.state, self.alone, self.last = state, "", []
        self.may_say.clear()

    def end(self, run: str, verdict: bool | None, now: float) -> None:
        if verdict is not None and run in self.may_say:
            if self.state == "probing" and verdict:
                self.turn("closed")
                self.closed_at = self.next_waiting = now
            elif self.state == "probing":
                self.pause(30, now)
            else:
                self.last = [*self.last, verdict][-4:]
                if not verdict and self.last.count(False) >= 2:
                    self.pause(30, now)
        self.may_say.discard(run)
        if self.alone == run:
            self.alone = ""

    def pause(self, seconds: float, now: float) -> None:
        until = now + min(seconds, 3600)
        if self.state == "open":
            self.until = max(self.until, until)
        else:
            self.turn("open")
            self.until = until

    def restart(self) -> None:
        self.may_say.clear()
        self.last, self.alone = [], ""
        if self.state == "closed":
            self.next_waiting = self.closed_at


STEP = st.one_of(
    st.tuples(st.just("start"), st.sampled_from(["bill", "load"]), st.booleans()),
    st.tuples(st.just("end"), st.integers(0, 5), st.sampled_from([True, False, False, None])),
    st.tuples(st.just("pause"), st.integers(0, 5), st.sampled_from([0, 10, 100, 9999])),
    st.tuples(st.just("pass"), st.sampled_from([0.05, 0.1, 7, 30, 4000]), st.none()),
    st.tuples(st.just("restart"), st.none(), st.none()),
    st.tuples(st.just("reload"), st.none(), st.none()),
)


@settings(max_examples=200)
@given(st.lists(STEP, max_size=60))
def test_every_history_is_that_of_the_simulator(steps: list[tuple[str, Any, Any]]) -> None:
    needs = {"bill": {"needs": CRM}, "load": {"needs": CRM}}
    flows, told = Flows(needs), Simulated()
    running: list[Asking] = []

    def seconds(at: datetime | None) -> float:
        return 0 if at is None else round((at - NOW).total_seconds(), 3)

    for what, first, second in steps:
        now = seconds(flows.now)
        if what == "pass":
            flows.pass_(first)
        elif what == "start":
            since = NOW if second else None
            run = flows.ask(first, since=since)
            assert bool(run.token) is told.may_start(now, 0 if second else None)
            if run.token:
                told.start(run.id, now, 0 if second else None)
                running.append(run)
        elif what == "restart":
            flows, running = flows.restarted(), []
            told.restart()
        elif what == "reload":
            flows.serve(needs)
        elif running:
            run = running.pop(first % len(running))
            if what == "pause":
                pause = DependencyPause("crm", flows.now + second * SECOND)
                flows.end(run, Outcome(state=RunState.RETRYING, pause=pause))
                told.pause(second, now)
                told.end(run.id, None, now)
            else:
                flows.end(run, {True: DONE, False: broken("crm"), None: SILENT}[second])
                told.end(run.id, second, now)
        assert flows.state == told.state
    generations = [each.generation for each in flows.written]
    assert generations == sorted(generations)
    # However it went: who asks for long enough starts, and one success closes it.
    flows.pass_(3600)
    flows.run(DONE)
    assert flows.state == "closed"
