"""A handler that ends or blocks the process, under a supervisor: its company runs on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Say
from tests.process import Program, supervised, turnout, until

from .ledger import Deaths, Snapshot, Witness, broken_promises, snapshot

FLOWS = Path(__file__).parent / "flows" / "deadly.py"
COMPANY = 31

NEVER_BLAME = """
from turnout.service.journal.sqlite import SqliteJournal

honest = SqliteJournal.rescue

async def lenient(self, *, now):
    rescued = await honest(self, now=now)
    for run in rescued.blamed:
        await self.retry(run, None, now=now)
    return rescued

SqliteJournal.rescue = lenient
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


def test_a_service_that_never_blames_crashes_for_ever(tmp_path: Path) -> None:
    outbreak = Outbreak(tmp_path, "exits", NEVER_BLAME)
    with outbreak.program as program:
        outbreak.start()
        with supervised(program, most_restarts=7) as deaths:
            until(lambda: len(deaths) > 7, 60, "one death after the other")
        last = snapshot(program.data)
        assert last.runs[outbreak.culprit].state != "failed"


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
