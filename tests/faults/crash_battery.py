"""A program whose flow is killed at planned points, one run after the other, and then checked.

What the batteries of the actions share: a run is sent, the program dies once where the plan says,
is started again, and the run ends. A battery says how its own plans are carried out, and what has
to hold afterwards. Not here: the points that the program passes (`crash_points`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import psutil  # type: ignore[import-untyped]  # no stubs

from tests.support.program import Answer, Program, until

from .crash_points import SABOTAGE
from .ledger import copied


def crashing(folder: Path, flows: Path, sabotage: str, env: dict[str, str]) -> Program:
    """Return a program that kills itself as the file `plan` says, and notes points in `passed`."""
    return Program(
        flows=flows, data=folder / "data", log=folder / "log", sabotage=SABOTAGE + sabotage,
        env={"CRASH_PLAN": str(folder / "plan"), "CRASH_LOG": str(folder / "passed"), **env},
    )  # fmt: skip


@dataclass
class CrashBattery:
    """Runs of one webhook, each killed as planned; `folder` has the files of `crashing`."""

    folder: Path
    program: Program
    runs: int = field(default=0, init=False)
    path: ClassVar[str]
    """The webhook, which is sent `{"number": n}`."""

    def one_run(self, plan: str = "") -> dict[str, Any]:
        """Run the flow once, killed as planned, and check it; returns its run."""
        self.runs += 1
        number, died, run_id, recorded = self.runs, False, "", set[str]()
        if not self.is_by_the_test(number, plan):
            (self.folder / "plan").write_text(plan)

        def finished() -> dict[str, Any] | None:
            nonlocal died, run_id, recorded
            if not self.program.alive:
                assert plan and not died, "died unplanned"
                assert not processes_of(self.program.pid), "a process is left"
                died, recorded = True, recorded_steps(self.program.data, number)
                self.program.start().ready()
            if not run_id:  # the first answer may die with the process
                run_id = self._accepted(number)
            answer = self.ask(f"/api/runs/{run_id}") if run_id else None
            run: dict[str, Any] | None = None if answer is None else answer.json
            if run is not None and run["state"] == "waiting":
                self.while_it_waits(run_id, "" if died else plan)
            return run if run is not None and run["finished_at"] else None

        run = until(finished, 60, f"the end of run {number}, killed at {plan}")
        assert died == bool(plan), f"never came by {plan}"
        assert run["state"] == "succeeded", run["error"]
        assert run["attempts"] == 1, "a death of the process spends no attempt"
        self.check(number, run, recorded)
        assert processes_of(self.program.pid) == [self.program.pid], "it has no child"
        return run

    def is_by_the_test(self, number: int, plan: str) -> bool:
        """Prepare a run; whether there is nothing for the program to kill itself by."""
        raise NotImplementedError

    def while_it_waits(self, run_id: str, plan: str) -> None:
        """Do what a run that waits needs."""

    def check(self, number: int, run: dict[str, Any], recorded: set[str]) -> None:
        """Compare what a run came to, and what was `recorded` at its death, with the promise."""
        raise NotImplementedError

    def _accepted(self, number: int) -> str:
        """Send the event of a run; returns the run's id, empty without an answer."""
        body = f'{{"number": {number}}}'.encode()
        headers = {"content-type": "application/json", "idempotency-key": f"event-{number}"}
        answer = self.program.ask(self.path, method="POST", body=body, headers=headers)
        return str(answer.json["runs"][0]) if answer is not None and answer.status == 202 else ""

    def ask(self, path: str, **options: Any) -> Answer | None:
        """Ask the operator's API; None when nobody answers."""
        token = (self.program.data / "api-token").read_text().strip()
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        return self.program.ask(path, headers=headers, **options)

    def blobs(self, pattern: str) -> Iterator[Path]:
        """Yield files of large results and artefacts."""
        return (self.program.data / "journal" / "results").glob(pattern)

    def open_blobs(self) -> list[str]:
        """Return the files of results and artefacts that the program has open."""
        opened = [each.path for each in self.program.process().open_files()]
        return [path for path in opened if "/results/" in path]

    def points(self) -> list[str]:
        """Return the points passed since the last call."""
        log = self.folder / "passed"
        found = log.read_text().splitlines()
        log.unlink()
        return found


def processes_of(session: int) -> list[int]:
    """Return the processes of a program's session, those that have ended aside."""
    found = []
    for each in psutil.process_iter(["pid", "status"]):
        try:
            if os.getsid(each.pid) == session and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def recorded_steps(data: Path, number: int) -> set[str]:
    """Return the steps of a run that were recorded when its program died."""
    with copied(data) as journal:
        rows = journal.execute(
            "SELECT key FROM steps JOIN runs ON runs.seq = run_seq JOIN events ON events.seq ="
            " event_seq WHERE events.id = ? AND steps.state = 'succeeded'",
            (f"event-{number}",),
        ).fetchall()
    return {key for (key,) in rows}
