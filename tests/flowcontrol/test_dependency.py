"""A breaker opens at failures, lets one run try, and closes; no history leaves it half open."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.gates import NOW, Asking, declare
from turnout import Fail, Retry, Skip, dependency
from turnout.service.domain.breaker import BreakerState, StoredBreaker
from turnout.service.domain.errors import InvalidData, SetupError
from turnout.service.domain.run import DependencyPause, Outcome, RunError, RunState
from turnout.service.flowcontrol.admission import Admission, FlowGates
from turnout.service.flowcontrol.dependency import Breaker, Dependency
from turnout.service.project import Project

SECOND = timedelta(seconds=1)
CRM = dependency("crm", open_after="50% of 4", probe="30s")


def broken(*names: str) -> Outcome:
    """Return the outcome of an attempt that these dependencies have failed."""
    error = RunError("ConnectionError", "refused")
    return Outcome(state=RunState.FAILED, error=error, blames=names)


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
        return self.breakers.standings()[0].stored.state.value


@pytest.fixture
def flows() -> Flows:
    return Flows({"bill": {"needs": CRM}, "load": {"needs": CRM}, "free": {}})


# ---------------------------------------------------------------- what it does


def test_it_opens_when_the_share_of_the_last_attempts_has_failed(flows: Flows) -> None:
    for outcome in (broken("crm"), DONE, DONE, DONE, broken("crm")):
        flows.run(outcome)
    assert flows.state == "closed", "the first failure is none of the last four"
    flows.run(broken("crm"), "load")
    assert flows.state == "open"
    assert flows.written[-1].reason == (
        "2 of the last 4 attempts failed, the last one: ConnectionError: refused"
    )


def test_while_it_is_open_all_that_need_it_wait_and_others_do_not(flows: Flows) -> None:
    flows.open()
    assert flows.waits_until() == flows.waits_until("load") == NOW + 30 * SECOND
    flows.run(DONE, "free")


def test_one_run_goes_alone_and_its_success_closes(flows: Flows) -> None:
    flows.open()
    flows.pass_(30)
    probe = flows.start("load")
    assert flows.state == "probing"
    assert flows.waits_until() == flows.now + 30 * SECOND
    flows.end(probe, DONE)
    assert flows.state == "closed"
    assert flows.freed == ["crm"], "those who wait are asked at once"
    flows.start()


def test_a_probe_that_fails_opens_it_for_as_long_again(flows: Flows) -> None:
    flows.open()
    flows.pass_(40)
    flows.run(broken("crm"))
    assert flows.waits_until() == flows.now + 30 * SECOND
    assert flows.written[-1].reason == "the probe failed: ConnectionError: refused"


@pytest.mark.parametrize("outcome", [None, SILENT, Outcome(state=RunState.QUEUED, counts=False)])
def test_a_probe_without_a_verdict_is_followed_by_another_at_once(
    flows: Flows, outcome: Outcome | None
) -> None:
    flows.open()
    flows.pass_(30)
    for _ in range(3):
        flows.end(flows.start(), outcome)
        assert flows.state == "probing"
    assert flows.freed == ["crm"] * 3
    flows.run(DONE)
    assert flows.state == "closed"


def test_a_probe_that_hangs_has_a_deadline_and_its_late_success_still_counts(flows: Flows) -> None:
    flows.open()
    flows.pass_(30)
    slow = flows.start()
    flows.pass_(30)
    second = flows.start()
    assert flows.waits_until() == flows.now + 30 * SECOND
    flows.end(slow, DONE)
    assert flows.state == "closed"
    flows.end(second, broken("crm"))
    assert flows.breakers.standings()[0].failed == 0, "it began before the breaker closed"


def test_failed_probes_are_free_for_a_day_since_it_was_last_closed(flows: Flows) -> None:
    def is_free(run: Asking) -> bool:
        return bool(flows.breakers.probed_by(run, flows.flows["bill"].needs, flows.now))

    assert not is_free(flows.start())
    flows.open()
    for hours, free in ((10, True), (10, True), (10, False)):
        flows.pass_(3600 * hours)
        probe = flows.start()
        assert is_free(probe) is free
        flows.end(probe, broken("crm"))
        flows = flows.restarted()
    flows.pass_(3600)
    flows.run(DONE)
    flows.open()
    flows.pass_(30)
    slow = flows.start()
    flows.pass_(30)
    second = flows.start()
    assert is_free(slow) and is_free(second)
    flows.end(second, DONE)
    assert is_free(slow), "it began as a probe, whatever has become of the breaker"


def test_attempts_of_an_earlier_generation_count_for_nothing(flows: Flows) -> None:
    early = [flows.start() for _ in range(6)]
    flows.open()
    flows.end(early.pop(), DONE)
    assert flows.state == "open"
    flows.pass_(30)
    probe = flows.start()
    flows.end(early.pop(), DONE)
    flows.end(early.pop(), broken("crm"))
    assert flows.state == "probing"
    flows.end(probe, DONE)
    for run in early:
        flows.end(run, broken("crm"))
    assert flows.state == "closed"


def test_what_waited_is_released_at_ten_a_second_and_what_is_new_at_once(flows: Flows) -> None:
    flows.open()
    waiting_since = flows.now
    flows.pass_(30)
    flows.run(DONE)
    flows.pass_(1)
    started = []
    for _ in range(20):
        run = flows.ask(since=waiting_since)
        while not run.token:
            assert flows.answer is not None and isinstance(flows.answer.answer, datetime)
            flows.now = flows.answer.answer
            run = flows.ask(since=waiting_since)
        started.append(flows.now)
        flows.start("load"), flows.start("load", since=flows.now)
    assert started[-1] - started[0] == 19 * SECOND / 10
    assert len(started) == len(set(started))


def test_a_run_pauses_it_until_then_but_never_for_longer_than_an_hour(flows: Flows) -> None:
    pause = DependencyPause("crm", NOW + timedelta(hours=3))
    flows.run(Outcome(state=RunState.RETRYING, error=RunError("Retry", "429"), pause=pause))
    assert flows.waits_until() == NOW + timedelta(hours=1)
    assert flows.written[-1].reason == "run 1 of bill asked: Retry: 429"


def test_a_pause_makes_an_open_one_wait_longer_and_never_shorter(flows: Flows) -> None:
    early = [flows.start(), flows.start()]
    flows.open()
    for run, seconds, until in zip(early, (10, 50), (30, 50), strict=True):
        pause = DependencyPause("crm", NOW + seconds * SECOND)
        flows.end(run, Outcome(state=RunState.RETRYING, pause=pause))
        assert flows.waits_until() == NOW + until * SECOND
    assert [each.generation for each in flows.written] == [1, 1]


# ---------------------------------------------------------------- half open for days


def test_a_process_that_dies_with_the_probe_lets_the_next_one_try(flows: Flows) -> None:
    flows.open()
    flows.pass_(30)
    flows.start()
    again = flows.restarted()
    assert again.state == "probing"
    again.run(DONE, "load")
    assert again.restarted().state == "closed"


def test_a_flow_that_is_gone_with_its_probe_lets_another_flow_try(flows: Flows) -> None:
    flows.open()
    flows.pass_(30)
    flows.start("load")
    flows.serve({"bill": {"needs": CRM}})
    flows.pass_(30)
    flows.run(DONE, "bill")
    assert flows.state == "closed"


def test_a_flow_that_needs_it_no_more_gives_its_probe_up_at_once(flows: Flows) -> None:
    flows.open()
    flows.pass_(30)
    probe = flows.start("load")
    flows.serve({"bill": {"needs": CRM}, "load": {}})
    flows.run(DONE, "bill")
    flows.end(probe, broken("crm"))
    assert flows.state == "closed"


def test_a_renamed_flow_keeps_its_probe(flows: Flows) -> None:
    flows.open()
    flows.pass_(30)
    probe = flows.start("load")
    flows.gates["bill"].take_over(flows.gates.pop("load"), flows.now)
    probe.flow = "bill"
    flows.end(probe, DONE)
    assert flows.state == "closed"


def test_a_paused_or_deleted_run_at_the_head_of_one_flow_holds_up_no_other(flows: Flows) -> None:
    flows.open()
    flows.pass_(86_400)  # `load` is paused and never asks; nothing is reserved for it
    flows.run(DONE, "bill")
    assert flows.state == "closed"


def test_a_start_that_is_taken_back_lets_the_next_one_try(flows: Flows) -> None:
    flows.open()
    flows.pass_(30)
    deleted = flows.start()
    flows.end(deleted)  # the journal did not find it any more
    flows.run(DONE)
    assert flows.state == "closed"


def test_settings_of_a_reload_keep_the_state_and_what_was_counted(flows: Flows) -> None:
    flows.run(broken("crm"))
    flows.serve({"bill": {"needs": dependency("crm", open_after="20% of 10", probe="5s")}})
    flows.run(broken("crm"))
    assert flows.state == "open"
    assert flows.waits_until() == NOW + 5 * SECOND


def test_runs_inside_when_a_reload_declares_it_say_nothing_about_an_open_one(flows: Flows) -> None:
    flows.open()
    running = flows.start("free")
    flows.serve({"bill": {"needs": CRM}, "free": {"needs": CRM}})
    flows.end(running, DONE)
    assert flows.state == "open"


def test_a_clock_set_back_over_a_restart_keeps_it_open_no_longer(flows: Flows) -> None:
    flows.open()
    flows.now -= timedelta(hours=5)
    again = flows.restarted()
    assert again.waits_until() == again.now + 30 * SECOND
    again.pass_(30)
    again.run(DONE)
    again.now -= timedelta(hours=5)
    third = again.restarted()
    third.start(), third.start()


def test_what_waited_is_still_released_slowly_after_a_restart(flows: Flows) -> None:
    since = flows.now
    flows.open()
    flows.pass_(30)
    flows.run(DONE)
    again = flows.restarted()
    again.start(since=since)
    assert again.waits_until(since=since) == again.now + SECOND / 10


# ---------------------------------------------------------------- a simulator


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


# ---------------------------------------------------------------- what is declared


class CrmDown(Exception):
    pass


class CrmGone(Fail):
    pass


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (ConnectionError("refused"), True),
        (TimeoutError(), True),
        (ExceptionGroup("both", [Skip(), OSError()]), True),
        (Fail("no such customer"), False),
        (Skip("paid already"), False),
        (Retry("not yet"), False),
        (InvalidData("no id"), False),
        (asyncio.CancelledError(), False),
        (ExceptionGroup("both", [Fail(), OSError()]), False),
    ],
)
def test_any_error_counts_but_those_that_say_nothing_about_it(
    error: BaseException, counts: bool
) -> None:
    assert CRM.blames(error) is counts


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (CrmDown(), True),
        (CrmGone(), True),
        (ExceptionGroup("both", [KeyError(), CrmDown()]), True),
        (ConnectionError("another system"), False),
        (KeyError("a fault of the flow"), False),
        (TimeoutError(), False),
    ],
)
def test_declared_errors_are_the_only_ones_that_count(error: BaseException, counts: bool) -> None:
    crm = dependency("crm", errors=(CrmDown, CrmGone))
    assert crm.blames(error) is counts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"open_after": "half"},
            "dependency('crm'): open_after='half' is no share of the last attempts; write "
            'open_after="50% of 20", of at most 1000',
        ),
        (
            {"open_after": "0% of 20"},
            "dependency('crm'): open_after='0% of 20' is no share of the last attempts; write "
            'open_after="50% of 20", of at most 1000',
        ),
        (
            {"probe": "0s"},
            "dependency('crm'): probe='0s' leaves it no time; write probe=\"30s\"",
        ),
        (
            {"errors": "OSError"},
            "dependency('crm'): errors='OSError': write types of errors, "
            "errors=(OSError, TimeoutError)",
        ),
        ({"name": ""}, "dependency(''): a name is 1 to 200 printable characters"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SetupError) as caught:
        dependency(**{"name": "crm"} | options)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ("crm", "flow 'bill': needs='crm': write needs=dependency(\"crm\"), or a list of them"),
        ([CRM, CRM], "flow 'bill': needs= names dependency 'crm' twice"),
        (3, "flow 'bill': needs=3: write needs=dependency(\"crm\"), or a list of them"),
    ],
)
def test_needs_takes_dependencies(needs: Any, message: str) -> None:
    with pytest.raises(SetupError) as caught:
        declare(needs=needs)
    assert caught.value.message == message


def test_flows_that_share_a_name_say_the_same_of_it() -> None:
    other = dependency("crm", probe="1m", errors=OSError)
    flows = [declare("bill", needs=CRM), declare("load", needs=[other])]
    with pytest.raises(SetupError) as caught:
        Project.of(flows)
    bill, load = flows
    assert str(caught.value) == (
        f"{load.file}:{load.line}: flow 'load' needs "
        'dependency("crm", open_after="50% of 20", probe="1m", errors=(OSError,)), and flow '
        f"'bill' ({bill.file}:{bill.line}) needs "
        'dependency("crm", open_after="50% of 4", probe="30s"); say it once and give both flows '
        "the same value"
    )
    Project.of([declare("bill", needs=CRM), declare("load", needs=[CRM])])


def test_a_share_is_rounded_up_to_attempts() -> None:
    counts = {"50% of 20": 10, "33% of 10": 4, "1% of 10": 1, "100% of 5": 5, " 50 %of 3 ": 2}
    assert {text: dependency("crm", open_after=text).failures for text in counts} == counts


def test_a_breaker_is_one_gate_that_flows_share(flows: Flows) -> None:
    first, second = flows.gates["bill"].needs, flows.gates["load"].needs
    assert first == second and isinstance(first[0], Breaker)
    assert isinstance(first[0].declared, Dependency)
    assert first[0].stored.state is BreakerState.CLOSED
