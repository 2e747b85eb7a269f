"""What the real program does when its wall clock is set, while it runs and over restarts."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.injected_clock import InjectedClock
from tests.support.program import Program, turnout, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

HOUR = timedelta(hours=1)
A_WHILE = timedelta(minutes=2)
"""What the test itself may take."""

FLOWS = """
from turnout import cron, flow, secret, sleep, webhook
from turnout import hmac

@flow(on=webhook("/note"))
async def note(data: dict) -> int:
    return 1

@flow(on=webhook("/rest"))
async def rest(data: dict) -> int:
    await sleep(data["for"])
    return 1

@flow(on=cron("* * * * * *", name="seconds"))
async def ticks() -> int:
    return 1

SIGNED = hmac("X-Signature", timestamp_header="X-Time", template="{timestamp}.{body}")

@flow(on=webhook("/signed", verify=SIGNED, secret=secret("SIGNS")))
async def signed(data: dict) -> int:
    return 1
"""


@pytest.fixture
def clock(tmp_path: Path) -> InjectedClock:
    return InjectedClock(tmp_path)


@pytest.fixture
def program(tmp_path: Path, clock: InjectedClock) -> Iterator[Program]:
    flows = tmp_path / "flows.py"
    flows.write_text(FLOWS)
    env = {**clock.env, "SIGNS": "a key"}
    with Program(flows=flows, data=tmp_path / "data", log=tmp_path / "log", env=env) as program:
        yield program


def queued_at(program: Program, run: str) -> datetime:
    return datetime.fromisoformat(program.api(f"/runs/{run}")["queued_at"])


def is_about(instant: datetime, ahead: timedelta) -> bool:
    """Whether an instant is the true time, or that much ahead of it."""
    return abs(instant - datetime.now(UTC) - ahead) < A_WHILE


def ends(program: Program, run: str) -> None:
    until(lambda: program.api(f"/runs/{run}")["state"] == "succeeded", 10, f"{run} succeeds")


def behind_seconds(program: Program) -> float:
    return program.metrics("turnout_clock_behind_seconds")[""]


def newest_tick(program: Program) -> datetime:
    (run,) = program.api("/runs?flow=ticks&limit=1")["items"]
    event: dict[str, Any] = program.api(f"/events/{run['event_id']}")
    return datetime.fromisoformat(event["time"])


def test_a_clock_set_ahead_and_back_while_the_service_runs(
    program: Program, clock: InjectedClock
) -> None:
    program.start().ready()
    rests = program.post("rest", {"for": "30m"})
    assert is_about(queued_at(program, rests), timedelta(0))

    clock.set("+1h")  # what was due within the hour is due now
    ends(program, rests)
    assert is_about(queued_at(program, program.post("note", {})), HOUR)
    until(lambda: is_about(newest_tick(program), HOUR), 10, "timers follow the wall clock")
    program.said("clock.stepped", 5)
    assert behind_seconds(program) == 0

    clock.set("+0s")  # the engine's time goes on, and timers wait
    assert is_about(queued_at(program, program.post("note", {})), HOUR)
    rests = program.post("rest", {"for": "1s"})
    ends(program, rests)
    assert program.api(f"/runs/{rests}")["queued_at"] < program.api(f"/runs/{rests}")["finished_at"]
    until(lambda: program.metrics("turnout_clock_steps_total").get('direction="back"'), 5, "a step")
    assert program.metrics("turnout_clock_steps_total") == {
        'direction="ahead"': 1, 'direction="back"': 1,
    }  # fmt: skip
    assert abs(behind_seconds(program) - 3600) < A_WHILE.total_seconds()
    until(lambda: program.metrics("turnout_trigger_up")['trigger="seconds"'] == 0, 5, "no tick")

    found = turnout("trigger", "seek", "seconds", "--to", "now", "--yes", "--data", program.data)
    assert found.returncode == 0, found.stdout + found.stderr
    until(lambda: is_about(newest_tick(program), timedelta(0)), 10, "ticks at the right time")


def test_a_signature_is_as_old_as_the_wall_clock_says(
    program: Program, clock: InjectedClock
) -> None:
    program.start().ready()
    clock.set("+1h")
    program.post("note", {})
    clock.set("+0s")
    stamp = str(int(datetime.now(UTC).timestamp()))
    right = hmac.new(b"a key", f"{stamp}.{{}}".encode(), hashlib.sha256).hexdigest()
    answer = program.ask(
        "/hooks/signed",
        method="POST",
        body=b"{}",
        headers={"X-Time": stamp, "X-Signature": right, "Content-Type": "application/json"},
    )
    assert answer is not None and answer.status == 202


def test_a_start_with_a_clock_that_is_behind_the_journal_believes_it_and_says_so(
    program: Program, clock: InjectedClock
) -> None:
    clock.set("+1d")
    program.start().ready()
    program.post("note", {})
    rests = program.post("rest", {"for": "1s"})
    program.quiet(10)
    assert "clock.behind" not in program.log_text()
    assert program.stop() == 0

    clock.set("-1h")
    program.start().ready()
    program.said("clock.behind", 5)
    assert abs(behind_seconds(program) - 25 * 3600) < A_WHILE.total_seconds()
    assert is_about(queued_at(program, program.post("note", {})), -HOUR)
    ends(program, program.post("rest", {"for": "1s"}))
    assert program.api(f"/runs/{rests}")["state"] == "succeeded"
    assert program.stop() == 0
    program.check_journal()
