"""Pauses and limits of operators over kills and restarts: the real program, seen from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.injected_clock import InjectedClock
from tests.support.program import Program, turnout, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

FLOWS = """
import asyncio
from pathlib import Path
from turnout import every, files, flow, limit, move, webhook

HERE = Path(__file__).parent

@flow(on=webhook("/orders"), concurrency=limit(1))
async def bill(data: dict) -> None:
    if data.get("hold"):
        while (HERE / "hold").exists():
            await asyncio.sleep(0.01)

@flow(on=webhook("/parcels"))
async def ship(data: dict) -> None: ...

@flow(on=files(f"{HERE}/inbox/*", settle="10ms", then=move("done/")))
async def load(path: Path) -> None: ...

@flow(on=every("1h", missed="skip"))
async def hourly() -> None: ...
"""


@pytest.fixture
def clock(tmp_path: Path) -> InjectedClock:
    return InjectedClock(tmp_path)


@pytest.fixture
def program(tmp_path: Path, clock: InjectedClock) -> Iterator[Program]:
    (tmp_path / "inbox").mkdir()
    flows = tmp_path / "flows.py"
    flows.write_text(FLOWS)
    data, log = tmp_path / "data", tmp_path / "log"
    with Program(flows=flows, data=data, log=log, env=clock.env) as program:
        program.start().ready()
        yield program


def command(program: Program, *words: str) -> str:
    """Run a command that succeeds; returns what it prints."""
    done = turnout(*words, "--data", program.data, env=program.env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def has_state(program: Program, run_id: str, state: str) -> Callable[[], bool]:
    """Whether a run is in a state by now."""
    return lambda: bool(program.api(f"/runs/{run_id}")["state"] == state)


def restart(program: Program) -> None:
    """Kill the program and start it again."""
    program.kill()
    program.start().ready()


@pytest.mark.full
def test_a_pause_outlives_kills_and_ends_by_itself_also_while_the_program_is_down(
    program: Program, clock: InjectedClock
) -> None:
    text = command(program, "pause", "bill", "--for", "1h", "--note", "the bank migrates")
    assert text.startswith("flow bill paused until ")
    first = program.post("orders", {})
    restart(program)
    assert "the bank migrates" in command(program, "pause", "--list")
    until(has_state(program, program.post("parcels", {}), "succeeded"), 10, "another flow runs")
    assert has_state(program, first, "queued")()

    program.kill()
    clock.set("+61m")
    program.start().ready()
    until(has_state(program, first, "succeeded"), 10, "the pause is over")
    assert command(program, "pause", "--list") == "nothing is paused\n"

    command(program, "pause", "bill", "--for", "1h")
    second = program.post("orders", {})
    clock.set("+122m")  # while it runs
    until(has_state(program, second, "succeeded"), 10, "the pause is over")
    clock.set("+61m")
    restart(program)
    assert command(program, "pause", "--list") == "nothing is paused\n"


def test_under_the_kill_switch_everything_is_accepted_and_nothing_starts(
    program: Program, clock: InjectedClock
) -> None:
    folder = program.flows.parent
    command(program, "pause", "--all", "--note", "wrong deploy")
    runs = [program.post("orders", {}), program.post("parcels", {})]
    (folder / "inbox" / "a.csv").write_text("1")
    command(program, "fire", "every:1h")
    until(lambda: len(program.api("/runs?state=queued")["items"]) == 4, 10, "all are accepted")
    restart(program)
    runs.append(program.post("parcels", {}))
    warnings = program.ask("/readyz")
    assert warnings is not None
    assert "everything is paused" in str(warnings.json["warnings"])
    waiting = program.api("/runs?state=queued")["items"]
    assert len(waiting) == 5 and not [run for run in waiting if run["started_at"]]

    text = command(program, "resume", "--all", "--discard", "--yes", "--by", "ada")
    assert text.startswith("everything resumed; 5 runs waited, the oldest for ")
    assert text.rstrip().endswith(": 5 discarded")
    until(has_state(program, program.post("orders", {}), "succeeded"), 10, "what comes later runs")
    assert {program.api(f"/runs/{run_id}")["state"] for run_id in runs} == {"skipped"}
    assert "dropped: ada discarded what waited" in command(program, "runs", "--state", "skipped")
    assert "dropped" in command(program, "why", runs[0])
    (folder / "inbox" / "b.csv").write_text("1")
    until(lambda: (folder / "inbox" / "done" / "b.csv").exists(), 10, "a later file is moved")
    assert (folder / "inbox" / "a.csv").exists()


def test_ticks_of_a_paused_timer_are_missed(program: Program, clock: InjectedClock) -> None:
    command(program, "pause", "every:1h")
    clock.set("+5h")
    restart(program)  # a running timer looks at the clock twice a minute only
    until(has_state(program, program.post("parcels", {}), "succeeded"), 10, "the rest goes on")
    command(program, "resume", "every:1h")
    missed = 'result="missed",trigger="every:1h"'
    until(lambda: program.metrics("turnout_events_total").get(missed, 0) >= 4, 15, "missed ticks")
    assert program.api("/runs?flow=hourly")["items"] == []


def test_a_limit_outlives_kills_and_ends_by_itself(program: Program, clock: InjectedClock) -> None:
    (program.flows.parent / "hold").touch()
    runs = [program.post("orders", {"hold": True}) for _ in range(4)]
    until(has_state(program, runs[0], "running"), 10, "the first runs")
    command(program, "limits", "set", "bill", "3", "--for", "1h", "--note", "month end")
    until(has_state(program, runs[2], "running"), 10, "three run at once")
    restart(program)
    until(has_state(program, runs[2], "running"), 10, "three run again")
    assert has_state(program, runs[3], "queued")()

    clock.set("+61m")

    def most() -> int:
        found = program.api("/limits")["items"]
        return int(next(row["max"] for row in found if row["name"] == "bill"))

    until(lambda: most() == 1, 10, "the flow file holds again")
    assert has_state(program, runs[2], "running")()  # lowering stops nothing
    (program.flows.parent / "hold").unlink()
    until(has_state(program, runs[3], "succeeded"), 10, "all run")
