"""A handler that ends or blocks the process, under a supervisor: its company runs on.

What the run itself had done is undone and its hook told, though it never runs again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Say
from tests.support.program import Program, supervised, turnout, until

from .ledger import Deaths, Snapshot, Witness, broken_promises, snapshot

FLOWS = Path(__file__).parent / "flows" / "deadly.py"
COMPANY = 31

NEVER_BLAME = """
import sys
import apsw
from turnout.service.journal.sqlite.journal import SqliteJournal

honest = SqliteJournal.rescue

async def lenient(self, *, now):
    rescued = await honest(self, now=now)
    data = sys.argv[sys.argv.index("--data") + 1]
    journal = apsw.Connection(f"{data}/journal/journal.db")  # another SQLite would remove the log
    journal.set_busy_timeout(5000)
    journal.execute("DELETE FROM steps WHERE key = '~failed'")
    journal.close()
    return rescued

SqliteJournal.rescue = lenient
"""

NEVER_KEEP_UNDOS = """
import asyncio
from turnout.service.journal.sqlite.journal import SqliteJournal

honest = SqliteJournal.record_step

def forgetful(self, claim, step):
    if step.task != "~on_undo":
        return honest(self, claim, step)
    done = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done

SqliteJournal.record_step = forgetful
"""

pytestmark = pytest.mark.timeout(120)


class Outbreak:
    """One deadly run started among innocent ones, under a supervisor."""

    def __init__(self, tmp_path: Path, deadly: str, sabotage: str = "") -> None:
        self.witness = Witness(tmp_path / "witness")
        self.deadly = deadly
        self.accepted: dict[str, tuple[str, ...]] = {}
        self.culprit = ""
        self.program = Program(
            flows=FLOWS,
            data=tmp_path / "data",
            log=tmp_path / "log",
            sabotage=sabotage,
            env={
                "TURNOUT_TEST_WITNESS": str(self.witness.path),
                "TURNOUT_BLOCKED_LOOP": "1s",
            },
        )

    def start(self) -> None:
        """Start the program, 31 innocent runs, and the deadly one last."""
        self.program.start().ready()
        for path in ["/hooks/minted"] * COMPANY + [f"/hooks/{self.deadly}"]:
            answer = self.program.ask(path, method="POST")
            assert answer is not None and answer.status == 202, answer
            self.accepted[answer.json["event"]] = tuple(answer.json["runs"])
            self.culprit = answer.json["runs"][0]

    def over(self) -> Snapshot | None:
        """Return the journal once all runs have ended."""
        if not self.program.alive:
            return None
        answer = self.program.ask("/readyz")
        if answer is None or answer.status != 200 or self.program.unfinished():
            return None
        return snapshot(self.program.data)


@pytest.mark.parametrize("deadly", ["exits", "blocks"])
def test_a_deadly_run_is_named_and_its_company_ends(tmp_path: Path, deadly: str, say: Say) -> None:
    outbreak = Outbreak(tmp_path, deadly)
    with outbreak.program as program:
        outbreak.start()
        with supervised(program, most_restarts=12) as deaths:
            last = until(lambda: _over(outbreak), 60, "the deadly run is dead")
        executed = outbreak.witness.executions()
        times = sum(line.run == outbreak.culprit for line in executed)
        say(f"{len(deaths)} deaths (exit codes {sorted(set(deaths))}), executed {times} times")
        assert not broken_promises(last, accepted=outbreak.accepted)
        dead = last.runs[outbreak.culprit]
        assert dead.state == "failed" and json.loads(dead.error or "{}")["type"] == "process_died"
        assert last.states("innocent") == {"succeeded": COMPANY}
        assert len(deaths) <= 6
        assert outbreak.culprit in program.log_text(), "the log does not name the run"
        letters = turnout("dead", "list", "--json", "--data", program.data)
        assert outbreak.culprit in letters.stdout, letters.stdout + letters.stderr
        if deadly == "blocks":
            assert "in blocks" in program.log_text(), "the log does not show where it was blocked"
        answer = program.ask("/hooks/minted", method="POST")
        assert answer is not None and answer.status == 202
        assert program.stop() == 0


def _over(outbreak: Outbreak) -> Snapshot | None:
    try:
        return outbreak.over()
    except AssertionError:  # it died between two questions
        return None


@pytest.mark.full
def test_a_service_that_never_blames_crashes_for_ever(tmp_path: Path) -> None:
    outbreak = Outbreak(tmp_path, "exits", NEVER_BLAME)
    with outbreak.program as program:
        outbreak.start()
        with supervised(program, most_restarts=7) as deaths:
            until(lambda: len(deaths) > 7, 60, "one death after the other")
        last = snapshot(program.data)
        assert last.runs[outbreak.culprit].state != "failed"


@pytest.mark.full
def test_recorded_steps_of_the_company_are_not_run_again(tmp_path: Path) -> None:
    outbreak = Outbreak(tmp_path, "exits")
    with outbreak.program as program:
        outbreak.start()
        program.ended(10)
        deaths = Deaths(outbreak.witness)
        deaths.note(program.data)
        assert deaths.recorded, "no step was recorded: the test saw nothing"
        program.start()
        with supervised(program, most_restarts=12):
            last = until(lambda: _over(outbreak), 60, "the deadly run is dead")
    broken = broken_promises(last, accepted=outbreak.accepted, deaths=deaths)
    assert not broken, broken[:5]


# ---------------------------------------------------------------- undone


class Trip:
    """One run that registers undos and then ends the process, under a supervisor, to its end."""

    def __init__(self, tmp_path: Path, path: str, *, sabotage: str = "", kills: int = 12) -> None:
        self.witness = Witness(tmp_path / "witness")
        self.program = Program(
            flows=FLOWS,
            data=tmp_path / "data",
            log=tmp_path / "log",
            env={"TURNOUT_TEST_WITNESS": str(self.witness.path)},
            sabotage=sabotage,
        )
        self.path = path
        self.most = kills
        self.deaths: list[int] = []

    def end(self) -> dict[str, Any]:
        """Start the program and the run; return the run as the API has it once it has ended."""
        with self.program.start() as program:
            program.ready()
            answer = program.ask(f"/hooks{self.path}", method="POST")
            assert answer is not None and answer.status == 202, answer
            run_id = answer.json["runs"][0]
            with supervised(program, most_restarts=self.most) as self.deaths:
                until(lambda: self._is_over(run_id), 90, "the run has ended")
            run: dict[str, Any] = program.api(f"/runs/{run_id}")
            assert program.metrics("turnout_runs").get('state="queued"', 0) == 0
            letters = turnout("dead", "list", "--json", "--data", program.data)
            assert run_id in letters.stdout, letters.stdout + letters.stderr
            assert program.stop() == 0
            program.check_journal()
            return run

    def _is_over(self, run_id: str) -> bool:
        if len(self.deaths) > self.most:
            raise AssertionError(f"it died {len(self.deaths)} times")
        try:
            return bool(self.program.api(f"/runs/{run_id}")["state"] == "failed")
        except AssertionError:  # it died meanwhile
            return False

    @property
    def lines(self) -> list[str]:
        return [line.task for line in self.witness.executions()]

    def ending(self) -> list[str]:
        """Return what was done after the last time that the flow itself ran."""
        lines = self.lines
        last = max(at for at, line in enumerate(lines) if line in ("trip", "pay"))
        return lines[last + 1 :]


BACK = ["give-back-car", "give-back-hotel", "give-back-flight"]


@pytest.mark.parametrize(("dies", "deadly"), [("step", "pay"), ("body", "trip")])
def test_a_run_that_kills_the_process_is_undone_and_told_of(
    tmp_path: Path, dies: str, deadly: str, say: Say
) -> None:
    trip = Trip(tmp_path, f"/trip/{dies}")
    run = trip.end()
    assert run["error"]["type"] == "process_died"
    assert len(trip.deaths) == trip.lines.count("trip") == trip.lines.count(deadly) == 5
    assert trip.lines.count("book-flight") == 1
    assert trip.ending() == [*BACK, "tell-process_died"]
    assert [step["key"] for step in run["steps"]] == [
        "book#1", "book#2", "book#3", "~failed",
        "~undo[2]/give_back#1", "~undo[1]/give_back#1", "~undo[0]/give_back#1",
        "~on_failure/tell#1",
    ]  # fmt: skip
    say(f"{len(trip.deaths)} deaths, then {trip.ending()}")


@pytest.mark.full
def test_what_a_thread_registered_is_kept_when_it_returns(tmp_path: Path) -> None:
    trip = Trip(tmp_path, "/thread/body")
    assert trip.end()["error"]["type"] == "process_died"
    assert trip.lines == ["trip"] * 5 + ["give-back-boat", "tell-process_died"]


@pytest.mark.full
def test_a_restart_in_the_middle_of_the_undos_goes_on(tmp_path: Path) -> None:
    trip = Trip(tmp_path, "/trip/undo-hotel-once")
    assert trip.end()["error"]["type"] == "process_died"
    assert len(trip.deaths) == 6
    assert trip.ending() == [*BACK[:2], *BACK[1:], "tell-process_died"]


def test_an_undo_that_kills_the_process_stops_no_other(tmp_path: Path) -> None:
    trip = Trip(tmp_path, "/trip/undo-hotel")
    run = trip.end()
    assert run["error"]["type"] == "process_died"
    assert len(trip.deaths) == 5 + 5
    assert trip.ending() == [BACK[0], *[BACK[1]] * 5, BACK[2], "tell-process_died"]
    states = {step["key"]: step["state"] for step in run["steps"]}
    assert [states[f"~undo[{number}]/give_back#1"] for number in (2, 1, 0)] == [
        "succeeded", "failed", "succeeded",
    ]  # fmt: skip


def test_a_hook_that_kills_the_process_is_given_up(tmp_path: Path) -> None:
    trip = Trip(tmp_path, "/trip/hook")
    run = trip.end()
    assert run["error"]["type"] == "process_died" and "no money" in run["error"]["message"]
    assert len(trip.deaths) == 5
    assert trip.ending() == [*BACK, *["tell-failed"] * 5]


def test_undos_that_are_not_kept_are_missed(tmp_path: Path) -> None:
    trip = Trip(tmp_path, "/trip/step", sabotage=NEVER_KEEP_UNDOS)
    trip.end()
    assert trip.ending() == ["tell-process_died"]


# ---------------------------------------------------------------- a fault of turnout's own

FAULTY = """
from turnout.service.dispatch.executor import Executor

execute = Executor.execute

async def broken(self, run, flow, *args, **more):
    if flow.name == "faulty" and run.crashes < 5:  # the attempt after the fifth death ends it
        raise RuntimeError("a fault of our own")
    return await execute(self, run, flow, *args, **more)

Executor.execute = broken
"""

BESIDE = """
import asyncio
from turnout import current, event, flow

@flow(on=event("faulty"))
async def faulty() -> None: ...

@flow(on=event("innocent"))
async def innocent() -> int:
    # Long enough to be running at the first two deaths; then isolated runs run one at a time.
    await asyncio.sleep(10 if current().run.crashes < 2 else 0.02)
    return 1
"""


def test_a_fault_of_our_own_blames_the_run_it_came_from_and_no_neighbour(tmp_path: Path) -> None:
    flows = tmp_path / "flows.py"
    flows.write_text(BESIDE)
    data = tmp_path / "data"
    program = Program(flows=flows, data=data, log=tmp_path / "log", sabotage=FAULTY)
    events = tmp_path / "event.json"
    with program.start(), supervised(program, most_restarts=12) as deaths:
        program.ready()
        turnout("pause", "flow:faulty", "--data", data)
        for kind in ("faulty", "innocent"):
            events.write_text(json.dumps(
                {"specversion": "1.0", "id": kind, "source": "/t", "type": kind}
            ))  # fmt: skip
            turnout("emit", events, "--data", data)
        until(lambda: program.metrics("turnout_slots").get('flow="innocent"'), 10, "its company")
        turnout("resume", "flow:faulty", "--data", data)
        until(lambda: len(deaths) >= 5, 60, "five deaths")
        program.ready()
        program.quiet(30)
        runs = {run["flow"]: run for run in program.api("/runs")["items"]}
        assert runs["innocent"]["state"] == "succeeded"
        assert runs["faulty"]["error"]["type"] == "process_died"
        assert set(deaths) == {70}
