"""What has a duration keeps its promise when the clock is set while the service is down.

An hour back: nothing is forgotten, and nothing waits until the instant that was once written down.
A day ahead: what was to last less than a day is over.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.injected_clock import InjectedClock
from tests.support.program import Program, turnout, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

FLOWS = """
from pathlib import Path

from turnout import Retry, dependency, flow, rate_limit, throttle, unique, webhook

CRM_IS_DOWN = Path(__file__).with_name("crm-is-down")

@flow(on=webhook("/paused"))
async def paused(data: dict) -> int:
    return 1

@flow(on=webhook("/fresh"), start_timeout="30m")
async def fresh(data: dict) -> int:
    return 1

@flow(on=webhook("/throttled"), rate=throttle("2/10m"))
async def throttled(data: dict) -> int:
    return 1

@flow(on=webhook("/limited"), rate=rate_limit("1/10m"))
async def limited(data: dict) -> int:
    return 1

@flow(on=webhook("/once"), unique=unique(lambda event: event.data["work"], until="2h"))
async def once(data: dict) -> int:
    return 1

@flow(on=webhook("/told", id=lambda event: event.data["delivery"], dedupe="2h"))
async def told(data: dict) -> int:
    return 1

@flow(on=webhook("/needs"), needs=dependency("crm", probe="10m"))
async def needs(data: dict) -> int:
    if CRM_IS_DOWN.exists():
        raise Retry("down", after="10m", pause="crm")
    return 1
"""


@pytest.fixture
def clock(tmp_path: Path) -> InjectedClock:
    return InjectedClock(tmp_path)


@pytest.fixture
def program(tmp_path: Path, clock: InjectedClock) -> Iterator[Program]:
    flows = tmp_path / "flows.py"
    flows.write_text(FLOWS)
    program = Program(flows=flows, data=tmp_path / "data", log=tmp_path / "log", env=clock.env)
    with program:
        yield program


def operate(program: Program, *words: str) -> None:
    done = turnout(*words, "--data", program.data, env=program.env)
    assert done.returncode == 0, done.stdout + done.stderr


def state(program: Program, run: str) -> str:
    return str(program.api(f"/runs/{run}")["state"])


def becomes(program: Program, run: str, wanted: str) -> None:
    until(lambda: state(program, run) == wanted, 15, f"run {run} is {wanted}")


def set_over_a_restart(program: Program, clock: InjectedClock, by: str) -> None:
    assert program.stop() == 0
    clock.set(by)
    program.start().ready()


def begin(program: Program) -> dict[str, str]:
    """Start the service and everything that has a duration; return the run of each flow."""
    program.start().ready()
    operate(program, "pause", "paused", "--for", "30m")
    operate(program, "pause", "fresh")
    runs = {flow: program.post(flow, {}) for flow in ("paused", "fresh", "limited")}
    runs["once"] = program.post("once", {"work": 1})
    runs["told"] = program.post("told", {"delivery": "d-1"})
    started = [program.post("throttled", {}) for _ in range(2)]
    runs["throttled"] = program.post("throttled", {})
    for run in (*started, runs["once"], runs["limited"]):
        becomes(program, run, "succeeded")
    return runs


def test_an_hour_back(program: Program, clock: InjectedClock) -> None:
    runs = begin(program)
    set_over_a_restart(program, clock, "-1h")
    becomes(program, runs["throttled"], "succeeded")  # nothing started within ten minutes of now
    assert state(program, program.post("limited", {})) != "skipped"
    assert state(program, program.post("limited", {})) == "skipped"
    assert program.post("once", {"work": 1}) == runs["once"]
    assert program.post("told", {"delivery": "d-1"}) == runs["told"]
    operate(program, "resume", "fresh")
    becomes(program, runs["fresh"], "succeeded")
    assert state(program, runs["paused"]) == "queued"
    clock.set("-29m")  # 31 minutes later
    becomes(program, runs["paused"], "succeeded")


def test_a_day_ahead(program: Program, clock: InjectedClock) -> None:
    runs = begin(program)
    set_over_a_restart(program, clock, "+1d")
    becomes(program, runs["paused"], "succeeded")
    becomes(program, runs["throttled"], "succeeded")
    assert state(program, program.post("limited", {})) != "skipped"
    assert program.post("once", {"work": 1}) != runs["once"]
    again = program.post("told", {"delivery": "d-1"})
    assert again == runs["told"], "a key goes by retention, which doubts such a clock for an hour"
    operate(program, "resume", "fresh")
    becomes(program, runs["fresh"], "skipped")


def open_breaker(program: Program) -> str:
    """Start the service and open a breaker for ten minutes; return a run that waits for it."""
    down = program.flows.with_name("crm-is-down")
    down.touch()
    program.start().ready()
    becomes(program, program.post("needs", {}), "retrying")
    down.unlink()
    waiting = program.post("needs", {})
    assert "crm" in waits_for(program, waiting)
    return waiting


def waits_for(program: Program, run: str) -> str:
    return str(program.api(f"/runs/{run}")["waits_for"])


def test_an_open_breaker_is_tried_again_in_time_when_the_clock_was_set_back(
    program: Program, clock: InjectedClock
) -> None:
    waiting = open_breaker(program)
    set_over_a_restart(program, clock, "-1h")
    assert "crm" in waits_for(program, waiting), "ten minutes are not over"
    clock.set("-49m")  # eleven minutes later
    becomes(program, waiting, "succeeded")
    becomes(program, program.post("needs", {}), "succeeded")


@pytest.mark.parametrize("over_a_restart", [True, False])
def test_an_open_breaker_is_tried_at_once_when_the_clock_was_set_ahead(
    program: Program, clock: InjectedClock, over_a_restart: bool
) -> None:
    waiting = open_breaker(program)
    if over_a_restart:
        set_over_a_restart(program, clock, "+1d")
    else:
        clock.set("+11m")
    becomes(program, waiting, "succeeded")
    assert program.metrics("turnout_breaker_state") == {'dependency="crm"': 0.0}


def test_a_clock_that_goes_back_under_an_open_breaker_keeps_it_open_and_no_longer(
    program: Program, clock: InjectedClock
) -> None:
    waiting = open_breaker(program)
    clock.set("-1h")
    program.said("clock.stepped", 15)
    assert "crm" in waits_for(program, waiting)
    clock.set("+11m")  # from when it was opened
    becomes(program, waiting, "succeeded")
