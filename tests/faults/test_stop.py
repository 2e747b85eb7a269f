"""SIGTERM under load: running runs end within the grace, the rest is handed back."""

from __future__ import annotations

import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Say
from tests.support.program import Program, turnout, until

from .ledger import Snapshot, Witness, broken_promises, snapshot
from .load import Generator

FLOWS = Path(__file__).parent / "flows" / "work.py"

SPEND_ATTEMPTS = """
from dataclasses import replace
from turnout.service.journal.sqlite.journal import SqliteJournal

honest = SqliteJournal.record

async def greedy(self, claim, outcome, **instants):
    return await honest(self, claim, replace(outcome, counts=True), **instants)

SqliteJournal.record = greedy
"""

pytestmark = pytest.mark.timeout(120)


def program_in(tmp_path: Path, **env: str) -> Program:
    return Program(
        flows=FLOWS,
        data=tmp_path / "data",
        log=tmp_path / "log",
        env={
            "TURNOUT_TEST_WITNESS": str(tmp_path / "witness"),
            "TURNOUT_TEST_GATE": str(tmp_path / "gate"),
            **env,
        },
    )


def start_held(program: Program, path: str, count: int, witness: Witness) -> dict[str, str]:
    """Start runs that wait for the gate; returns run ids by event id once all are executing."""
    runs: dict[str, str] = {}
    for _ in range(count):
        answer = program.ask(path, method="POST")
        assert answer is not None and answer.status == 202, answer
        runs[answer.json["event"]] = answer.json["runs"][0]
    until(lambda: len(witness.executions()) == count, 10, "all held runs executing")
    return runs


def finish_after_restart(program: Program, tmp_path: Path) -> Snapshot:
    """Open the gate, start again with quick runs, wait until all is quiet, stop."""
    (tmp_path / "gate").touch()
    program.env = {**program.env, "TURNOUT_TEST_SECONDS": "0.001", "TURNOUT_TEST_AT_ONCE": "64"}
    program.start().ready()
    program.quiet(30)
    assert program.stop() == 0
    return snapshot(program.data)


def test_the_stop_drains_and_hands_back(tmp_path: Path, seed: int, full: bool, say: Say) -> None:
    witness = Witness(tmp_path / "witness")
    program = program_in(
        tmp_path, TURNOUT_TEST_SECONDS="0.25", TURNOUT_TEST_AT_ONCE="8", TURNOUT_GRACE="10s"
    )
    with program:
        load = Generator(
            port=program.port, seed=seed, pace=200, github_share=0.0, minted_path="/hooks/steps"
        )
        stops: list[float] = []
        with load.running() as ledger:
            for _ in range(20 if full else 2):
                before = len(witness.executions())
                program.start().ready()
                until(partial(_executed, witness, before + 12), 15, "runs executing")
                program.signal(signal.SIGTERM)
                began = time.monotonic()
                assert program.ended(12) == 0
                stops.append(time.monotonic() - began)
                stopped = snapshot(program.data)
                started = {line.run for line in witness.executions()}
                ended = {run.id for run in stopped.runs.values() if run.state == "succeeded"}
                assert started == ended, "a run that had begun was not let to its end"
                waiting = [run for run in stopped.runs.values() if run.state == "queued"]
                assert waiting, "nothing was waiting: the test saw nothing"
                assert {run.attempts for run in waiting} == {0}
        last = finish_after_restart(program, tmp_path)
    say(f"{len(stops)} stops, {max(stops):.2f} s at most; answers {dict(ledger.statuses)}")
    assert set(ledger.statuses) <= {202, 503, None}
    assert {run.attempts for run in last.runs.values()} == {1}
    assert not broken_promises(last, accepted=ledger.accepted)


def test_a_stop_at_full_speed_leaves_no_run_behind(
    tmp_path: Path, seed: int, full: bool, say: Say
) -> None:
    """Runs start on insert while the stop begins: none stays running, none counts as a crash."""
    program = program_in(tmp_path, TURNOUT_TEST_SECONDS="0.001", TURNOUT_GRACE="10s")
    dice = random.Random(seed)
    stops = 50 if full else 4
    with program:
        load = Generator(port=program.port, seed=seed, threads=8, github_share=0.0)
        with load.running() as ledger:
            for _ in range(stops):
                program.start().ready()
                time.sleep(dice.uniform(0.05, 0.3))
                assert program.stop() == 0
                stopped = snapshot(program.data)
                assert set(stopped.states()) <= {"succeeded", "queued"}, stopped.states()
        last = finish_after_restart(program, tmp_path)
    say(f"{stops} stops; answers {dict(ledger.statuses)}")
    assert not broken_promises(last, accepted=ledger.accepted)
    assert {(run.attempts, run.crashes) for run in last.runs.values()} == {(1, 0)}


def _executed(witness: Witness, count: int) -> bool:
    return len(witness.executions()) >= count


def stop_while_held(tmp_path: Path, sabotage: str = "") -> tuple[Snapshot, Snapshot, set[str]]:
    """Stop while runs are held past the grace; returns the journal at the stop and at the end."""
    program = program_in(tmp_path, TURNOUT_GRACE="300ms")
    program.sabotage = sabotage
    with program:
        program.start().ready()
        held = start_held(program, "/hooks/gated", 8, Witness(tmp_path / "witness"))
        assert program.stop(5) == 0
        stopped = snapshot(program.data)
        return stopped, finish_after_restart(program, tmp_path), set(held.values())


def test_runs_past_the_grace_are_handed_back_unspent(tmp_path: Path) -> None:
    stopped, last, held = stop_while_held(tmp_path)
    assert {(run.state, run.attempts) for run in stopped.runs.values()} == {("queued", 0)}
    assert set(last.runs) == held
    assert {(run.state, run.attempts, run.crashes) for run in last.runs.values()} == {
        ("succeeded", 1, 0)
    }


def test_a_spent_attempt_is_noticed(tmp_path: Path) -> None:
    stopped, _, _ = stop_while_held(tmp_path, SPEND_ATTEMPTS)
    assert {run.attempts for run in stopped.runs.values()} == {1}


def test_a_second_signal_ends_at_once_and_loses_nothing(tmp_path: Path) -> None:
    program = program_in(tmp_path, TURNOUT_GRACE="60s")
    with program:
        program.start().ready()
        held = start_held(program, "/hooks/gated", 8, Witness(tmp_path / "witness"))
        program.signal(signal.SIGTERM)
        program.said("service.stopping", 5)
        assert program.alive
        program.signal(signal.SIGTERM)
        assert program.ended(1) == 128 + signal.SIGTERM
        last = finish_after_restart(program, tmp_path)
    assert {run.id for run in last.runs.values() if run.state == "succeeded"} == set(held.values())
    assert {run.attempts for run in last.runs.values()} == {1}


def test_a_stopping_service_says_so_and_takes_events_for_the_next(tmp_path: Path) -> None:
    program = program_in(tmp_path, TURNOUT_GRACE="60s")
    with program:
        program.start().ready()
        start_held(program, "/hooks/gated", 1, Witness(tmp_path / "witness"))
        program.signal(signal.SIGTERM)
        program.said("service.stopping", 5)
        taken = until(lambda: program.ask("/hooks/gated", method="POST"), 5, "an answer")
        assert taken.status == 202
        (late,) = taken.json["runs"]
        ready = program.ask("/readyz")
        assert ready is not None and ready.status == 503 and b"stopping" in ready.body
        health = program.ask("/healthz")
        assert health is not None and health.status == 200
        assert program.api(f"/runs/{late}")["state"] == "queued"
        (tmp_path / "gate").touch()
        assert program.ended(10) == 0
        assert snapshot(program.data).runs[late].state == "queued"
        last = finish_after_restart(program, tmp_path)
        assert {(run.state, run.attempts) for run in last.runs.values()} == {("succeeded", 1)}


FILES = """
import time
from pathlib import Path
from turnout import event, every, files, flow

@flow(on=files("inbox/*.txt", settle="0s"))
async def load(path: Path) -> str:
    return path.name

@flow(on=every("1s"))
async def tick() -> None: ...

@flow(on=event("long"))
def long() -> None:
    while not Path("gate").exists():
        time.sleep(0.05)
"""


def test_files_and_ticks_are_taken_while_it_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inbox").mkdir()
    flows, data, file = tmp_path / "flows.py", tmp_path / "data", tmp_path / "event.json"
    flows.write_text(FILES)
    program = Program(flows=flows, data=data, log=tmp_path / "log")
    with program.start():
        program.ready()
        file.write_text('{"specversion": "1.0", "id": "1", "source": "/t", "type": "long"}')
        turnout("emit", file, "--data", data)
        until(lambda: program.metrics("turnout_slots").get('flow="long"'), 10, "it runs")
        program.signal(signal.SIGTERM)
        program.said("service.stopping", 5)
        (tmp_path / "inbox" / "late.txt").write_text("late")

        def queued() -> set[str]:
            return {run["flow"] for run in program.api("/runs?state=queued")["items"]}

        until(lambda: queued() >= {"load", "tick"}, 20, "a file and a tick")
        (tmp_path / "gate").touch()
        assert program.ended(20) == 0
        program.start().ready()

        def loaded() -> list[tuple[str, str | None]]:
            runs = program.api("/runs?flow=load")["items"]
            return [(run["state"], run["result"]) for run in runs]

        until(lambda: loaded() == [("succeeded", "late.txt")], 20, "what came late")
        assert program.stop() == 0


def test_a_thread_that_never_returns_does_not_hold_the_process(tmp_path: Path) -> None:
    program = program_in(tmp_path, TURNOUT_GRACE="300ms")
    with program:
        program.start().ready()
        held = start_held(program, "/hooks/stuck", 2, Witness(tmp_path / "witness"))
        assert program.stop(6) == 75  # that something was cut off can be told
        stopped = snapshot(program.data)
        assert {(run.state, run.attempts) for run in stopped.runs.values()} == {("queued", 0)}
        last = finish_after_restart(program, tmp_path)
    assert {run.id for run in last.runs.values() if run.state == "succeeded"} == set(held.values())
    assert {run.attempts for run in last.runs.values()} == {1}
