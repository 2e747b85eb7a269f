"""A flow of fifteen steps, killed at every point it passes: the result is the undisturbed one.

Sequence, gather, map, child run, sleep, poll, a budget, and the first of several waits. The process
kills itself (SIGKILL) right behind a write that became durable, or inside a step whose effect has
happened, and is started again. What was recorded at the death has run once; what was not, at most
twice, under one idempotency key.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.conftest import Say
from tests.support.program import Program, until

from .crash_points import SABOTAGE, forgetting, plans_of
from .ledger import copied

pytestmark = pytest.mark.timeout(600)

FLOWS = Path(__file__).parent / "flows" / "twelve_steps.py"

STEPS = {
    "fetch#1": "fetch", "check#1": "check", "left#1": "left", "right#1": "right",
    "polish.map#1[0]": "polish 1", "polish.map#1[1]": "polish 2", "polish.map#1[2]": "polish 3",
    "wrap#1": "wrap", "poll#1[1]": "look 1", "poll#1[2]": "look 2", "publish#1": "publish",
}  # fmt: skip
"""Steps with an effect, by key; also a child run, a sleep, a wait, and which wait came first."""

RESULT = {
    "pair": [60, 600], "squares": [1, 4, 9], "parcel": "wrapped 3", "word": "READY",
}  # fmt: skip


@dataclass
class Battery:
    """A program that is killed at planned points, one run after the other."""

    folder: Path
    program: Program
    runs: int = 0
    died: bool = False

    @classmethod
    def at(cls, folder: Path, sabotage: str = "") -> Battery:
        env = {"CRASH_PLAN": str(folder / "plan"), "CRASH_LOG": str(folder / "passed")}
        program = Program(
            flows=FLOWS,
            data=folder / "data",
            log=folder / "log",
            env=env,
            sabotage=SABOTAGE + sabotage,
        )
        return cls(folder, program)

    def points(self) -> list[str]:
        log = self.folder / "passed"
        found = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return found

    def one_run(self, plan: str | None = None, *, early: bool = False) -> dict[str, Any]:
        """Run the flow once, killed as planned; returns the finished run."""
        self.runs += 1
        folder = self.folder / f"run-{self.runs}"
        folder.mkdir()
        if plan is not None:
            (self.folder / "plan").write_text(plan)
        body = {"id": self.runs, "folder": str(folder)}
        self.died = False
        run_id = self._accepted(body)
        told = early and self._tell()
        recorded: set[str] = set()

        def finished() -> dict[str, Any] | None:
            nonlocal told, recorded
            if not self.program.alive:
                assert plan is not None and not self.died, "died unplanned"
                self.died, recorded = True, recorded_steps(self.program.data, run_id)
                self.program.start()
                self.program.ready()
            answer = self._run(run_id)
            if answer is None:
                return None
            if not told and any(
                step["key"] == "wait_for#1" and step["state"] == "waiting"
                for step in answer["steps"]
            ):
                told = self._tell()
            return answer if answer["state"] in ("succeeded", "failed") else None

        run = until(finished, 30, f"the end of {run_id}, killed at {plan}")
        assert self.died == (plan is not None), f"never came by {plan}"
        check(folder / "effects", run, recorded)
        return run

    def _accepted(self, body: dict[str, Any]) -> str:
        """Send the event until it is accepted; the first answer may die with the process."""

        def accepted() -> str | None:
            if not self.program.alive:
                self.died = True
                self.program.start()
                self.program.ready()
            answer = self._post("/hooks/twelve", body, f"twelve-{self.runs}")
            return None if answer is None else str(answer["runs"][0])

        return until(accepted, 20, "an accepted event")

    def _tell(self) -> bool:
        return (
            self._post(f"/hooks/go/{self.runs}", {"word": "ready"}, f"go-{self.runs}") is not None
        )

    def _post(self, path: str, body: dict[str, Any], key: str) -> Any:
        headers = {"content-type": "application/json", "idempotency-key": key}
        answer = self.program.ask(path, method="POST", body=orjson.dumps(body), headers=headers)
        return answer.json if answer is not None and answer.status == 202 else None

    def _run(self, run_id: str) -> dict[str, Any] | None:
        token = (self.program.data / "api-token").read_text().strip()
        headers = {"authorization": f"Bearer {token}"}
        answer = self.program.ask(f"/api/runs/{run_id}", headers=headers)
        found: dict[str, Any] | None = None if answer is None else answer.json
        return found


def check(effects: Path, run: dict[str, Any], recorded: set[str]) -> None:
    assert run["state"] == "succeeded", run["error"]
    assert run["result"] == RESULT
    assert run["attempts"] == 1, "neither a wait nor a death of the process spends an attempt"
    keys: dict[str, list[str]] = defaultdict(list)
    for line in effects.read_text().splitlines():
        label, _, key = line.partition("|")
        keys[label].append(key)
    assert set(keys) == set(STEPS.values())
    for step, label in STEPS.items():
        times = 1 if step in recorded else 2
        assert len(keys[label]) <= times, f"{label} ran {len(keys[label])} times"
        assert len(set(keys[label])) == 1, f"{label} had several idempotency keys"
    assert len({key for found in keys.values() for key in found}) == len(STEPS)


def recorded_steps(data: Path, run_id: str) -> set[str]:
    """Return the steps and looks of a run and its child that were recorded when it died."""
    with copied(data) as journal:
        rows = journal.execute(
            "WITH mine AS (SELECT seq FROM runs WHERE id = ?1 UNION SELECT child.seq"
            " FROM runs AS parent JOIN steps AS s ON s.run_seq = parent.seq"
            " JOIN runs AS child ON child.id = s.origin WHERE parent.id = ?1)"
            " SELECT key, state, tries, iif(state = 'waiting', CAST(result AS TEXT), NULL)"
            " FROM steps WHERE run_seq IN mine AND (state = 'succeeded' OR task = 'poll')",
            (run_id,),
        ).fetchall()
    found = {key for key, state, _, _ in rows if state == "succeeded"}
    for key, state, tries, note in rows:
        if key == "poll#1":
            looks = tries if state == "succeeded" else orjson.loads(note)["looks"]
            found |= {f"{key}[{number}]" for number in range(1, looks + 1)}
    return found


def test_killed_at_any_point_the_result_is_the_undisturbed_one(
    tmp_path: Path, full: bool, seed: int, say: Say
) -> None:
    battery = Battery.at(tmp_path)
    with battery.program.start():
        battery.program.ready()
        battery.one_run()
        plans = plans_of(battery.points())
        inside = [plan for plan in plans if plan.startswith("inside")]
        assert len(inside) == len(STEPS)
        assert sum("succeeded|" in plan and "#" in plan for plan in plans) == 15
        chosen = plans
        if not full:
            chosen = random.Random(seed).sample(plans, 5)
            chosen += ["twelve wait_for#1 waiting|1", "twelve pack#1 waiting|1"]
        for number, plan in enumerate(chosen):
            # A run that never waits for the word comes by fewer suspensions.
            battery.one_run(plan, early=number % 2 == 1 and "twelve waiting" not in plan)
        battery.program.stop()
        battery.program.check_journal()
    with copied(battery.program.data) as journal:
        counted = "SELECT state, count(*) FROM runs WHERE flow = 'patience' GROUP BY state"
        lost = journal.execute(counted)
        assert lost.fetchall() == [("cancelled", battery.runs)], "each run dropped one child"
        waits = journal.execute("SELECT count(*) FROM waits").fetchone()
        assert waits == (0,)
        taken = journal.execute("SELECT count(*), sum(amount) FROM budget_takes").fetchone()
        assert taken == (battery.runs, battery.runs), "each run took once"
    say(f"{len(chosen)} of {len(plans)} points, each killed at once")


def test_the_battery_notices_a_journal_that_forgets_steps(tmp_path: Path) -> None:
    battery = Battery.at(tmp_path, forgetting("fetch#1"))
    with battery.program.start():
        battery.program.ready()
        with pytest.raises(AssertionError, match=r"ran \d+ times"):
            battery.one_run("inside check|1")
