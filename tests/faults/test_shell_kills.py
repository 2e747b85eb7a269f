"""`kill -9` of a service whose flows run commands: nothing of them runs on, and none runs twice.

A command that was recorded never runs again; the one in flight runs again under the same key. The
negative control gives the program a guardian that does not kill: the same check must notice it.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # no stubs
import pytest

from tests.conftest import Say
from tests.support.processes import Mark, lives
from tests.support.program import Program, until
from turnout.handlers.actions import shell_guardian

pytestmark = pytest.mark.timeout(300)

MOST_SECONDS = 2.0

FLOWS = """
from turnout import artefact, flow, shell, task, webhook

STUBBORN = '''
trap "" TERM INT HUP QUIT
(trap "" TERM; setsid sh -c 'trap "" TERM; exec >/dev/null 2>&1 </dev/null; while :; do sleep 300; done' &)
(exec 3<&- >/dev/null 2>&1 </dev/null; sh -c 'sleep 300 & sleep 300' &)
sleep 300 &
yes $$
'''

@flow(on=webhook("/stubborn"))
async def stubborn(data: dict[str, dict[str, str]]) -> None:
    await shell(STUBBORN, shell=True, env=data["env"])

@task(pool="process")
def apart(env: dict[str, str]) -> None:
    shell.blocking(STUBBORN, shell=True, env=env)

@flow(on=webhook("/apart"))
async def in_process(data: dict[str, dict[str, str]]) -> None:
    await apart.run(data["env"])

@flow(on=webhook("/plain"))
def plain(data: dict[str, dict[str, str]]) -> None:
    shell.blocking(STUBBORN, shell=True, env=data["env"])

ONE = 'echo "one $TURNOUT_STEP_KEY" >> "$0"; while [ -e "$0.hold" ]; do sleep 0.02; done; echo done'

@flow(on=webhook("/steps"))
async def steps(data: dict[str, str]) -> str:
    result = await shell(["sh", "-c", ONE, data["file"]])
    await shell(["sh", "-c", 'echo "two $TURNOUT_STEP_KEY" >> "$0"', data["file"]])
    return result.stdout.strip()

@flow(on=webhook("/dump"))
async def dump(data: dict[str, str]) -> str | None:
    result = await shell(
        f"yes 0123456789abcdef | head -c {int(data['bytes'])}", shell=True,
        stdout=artefact("dump.txt"),
    )
    return result.artefact
"""  # noqa: E501  the commands of a shell

BLIND = """
import os
from pathlib import Path
from turnout.handlers.actions import shell_command
shell_command._GUARDIAN = Path(os.environ["BLIND_GUARDIAN"])
"""

DEADLY = """
import os, signal
from pathlib import Path
from turnout.handlers.actions import shell_command
from turnout.service.journal.sqlite.journal import SqliteJournal

def passed(point):
    plan = Path(os.environ["KILL_AT"])
    if plan.exists() and plan.read_text() == point:
        plan.unlink()
        os.kill(os.getpid(), signal.SIGKILL)

run_command = shell_command.run_command
def deadly(*given):
    passed("before it starts")
    result = run_command(*given)
    passed("ended, not recorded")
    return result
shell_command.run_command = deadly

record_step = SqliteJournal.record_step
def watched(self, claim, step):
    future = record_step(self, claim, step)
    future.add_done_callback(lambda _: passed(f"recorded {step.key}"))
    return future
SqliteJournal.record_step = watched
"""
POINTS = (
    "before it starts", "while it runs", "ended, not recorded", "recorded shell#1",
    "recorded shell#2",
)  # fmt: skip


def program_at(folder: Path, sabotage: str = "", **env: str) -> Program:
    (folder / "flows.py").write_text(FLOWS)
    return Program(
        flows=folder / "flows.py", data=folder / "data", log=folder / "log", sabotage=sabotage,
        env={"TURNOUT_LOG_FORMAT": "json", **env},
    )  # fmt: skip


def left_after_kill(program: Program, paths: Sequence[str]) -> tuple[list[psutil.Process], float]:
    """Kill the service while stubborn commands run; returns what is left of them, and after when.

    They are waited for as long as they may take.
    """
    marks = {path: Mark() for path in paths}
    with program.start():
        program.ready()
        for path, mark in marks.items():
            program.post(path, {"env": mark.env})
            until(lambda mark=mark: len(mark.found()) >= 7, 30, f"the command of {path} runs")  # type: ignore[misc]
        guardians = [
            each
            for each in psutil.Process(program.pid).children(recursive=True)
            if any(part.endswith("guardian.py") for part in each.cmdline())
        ]
        assert len(guardians) == len(paths)
        known = [*guardians, *(each for mark in marks.values() for each in mark.found())]
        killed = time.monotonic()
        program.child.send_signal(signal.SIGKILL)
        while any(map(lives, known)) and time.monotonic() - killed < MOST_SECONDS:
            time.sleep(0.01)
        seconds = time.monotonic() - killed
        born_since = [each for mark in marks.values() for each in mark.found()]
        return [*filter(lives, known), *born_since], seconds


@pytest.mark.alone
def test_nothing_is_left_two_seconds_after_the_service_was_killed(tmp_path: Path, say: Say) -> None:
    left, seconds = left_after_kill(program_at(tmp_path), ["stubborn", "apart", "plain"])
    say(f"nothing was left after {seconds:.2f} s")
    assert left == []


def test_without_the_guardian_something_is_left(tmp_path: Path) -> None:
    source = Path(shell_guardian.__file__).read_text()
    kills = "                    self._kill()  # the service is gone\n"
    assert source.count(kills) == 1
    (tmp_path / "blind_guardian.py").write_text(source.replace(kills, ""))
    program = program_at(tmp_path, BLIND, BLIND_GUARDIAN=str(tmp_path / "blind_guardian.py"))
    left, _ = left_after_kill(program, ["stubborn"])
    try:
        assert len(left) >= 4, "the check must notice it"
    finally:
        for each in left:
            each.kill()


def test_a_kill_at_each_boundary_repeats_at_most_the_command_in_flight(tmp_path: Path) -> None:
    plan, program = tmp_path / "plan", program_at(tmp_path, DEADLY, KILL_AT=str(tmp_path / "plan"))
    with program.start():
        for number, point in enumerate(POINTS):
            program.ready()
            file = tmp_path / f"effects-{number}"
            hold = Path(f"{file}.hold")
            if point == "while it runs":
                hold.touch()
            else:
                plan.write_text(point)
            program.ask(  # it may be killed before it answers
                "/hooks/steps", method="POST", body=json.dumps({"file": str(file)}).encode()
            )
            if point == "while it runs":
                until(lambda file=file: file.exists() and file.read_text(), 20, "it runs")  # type: ignore[misc]
                program.child.send_signal(signal.SIGKILL)
            assert program.ended(20) == -9, point
            hold.unlink(missing_ok=True)
            program.start().ready()
            until(lambda: program.unfinished() == 0, 20, "the run ends")
            runs = program.api("/runs")["items"]
            assert len(runs) == number + 1, "each was accepted"
            run = max(runs, key=lambda each: (each["queued_at"], each["id"]))
            assert (run["state"], run["result"]) == ("succeeded", "done"), point
            told = [line.split() for line in file.read_text().splitlines()]
            keys = {name: [key for each, key in told if each == name] for name in ("one", "two")}
            often = {"while it runs": (2, 1), "ended, not recorded": (2, 1)}
            assert (len(keys["one"]), len(keys["two"])) == often.get(point, (1, 1)), point
            assert len(set(keys["one"])) == len(set(keys["two"])) == 1, "the same key each time"
        assert program.stop() == 0
        program.check_journal()


def ended(program: Program, run_id: str) -> Any:
    run = program.api(f"/runs/{run_id}")
    return run if run["finished_at"] else None


def test_a_clean_stop_hands_the_run_back_and_leaves_nothing(tmp_path: Path) -> None:
    mark, program = Mark(), program_at(tmp_path, TURNOUT_GRACE="1s")
    with program.start():
        program.ready()
        run_id = program.post("stubborn", {"env": mark.env})
        until(lambda: len(mark.found()) >= 7, 30, "the command runs")
        program.stop(30)
        until(lambda: not mark.found(), MOST_SECONDS, "nothing is left")
        program.start().ready()
        until(lambda: len(mark.found()) >= 7, 30, "it runs again")
        assert program.api(f"/runs/{run_id}")["attempts"] == 0, "no attempt was spent"


def test_a_cancelled_run_ends_its_command(tmp_path: Path) -> None:
    mark, program = Mark(), program_at(tmp_path)
    with program.start():
        program.ready()
        run_id = program.post("plain", {"env": mark.env})
        until(lambda: len(mark.found()) >= 7, 30, "the command runs")
        token = (program.data / "api-token").read_text().strip()
        answer = program.ask(
            f"/api/runs/{run_id}/cancel", method="POST",
            headers={"Authorization": f"Bearer {token}"},
        )  # fmt: skip
        assert answer is not None and answer.status == 200, answer
        until(lambda: not mark.found(), 10, "nothing is left")


def test_an_artefact_of_any_size_is_written_at_flat_memory(
    tmp_path: Path, full: bool, say: Say
) -> None:
    size = 2**30 if full else 2**26
    program = program_at(tmp_path)
    with program.start():
        program.ready()
        small = program.post("dump", {"bytes": str(2**20)})
        until(lambda: ended(program, small), 30, "the small one ends")
        before = most = program.rss_mib()
        run_id = program.post("dump", {"bytes": str(size)})

        def done() -> Any:
            nonlocal most
            most = max(most, program.rss_mib())
            return ended(program, run_id)

        run = until(done, 250, "the dump ends")
        say(f"{size / 2**20:.0f} MiB: {before:.0f} MiB before, {most:.0f} MiB at most")
        assert run["state"] == "succeeded", run
        assert [(each["name"], each["bytes"]) for each in run["artefacts"]] == [("dump.txt", size)]
        assert most - before < 16
