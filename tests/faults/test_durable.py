"""Durable flows from outside: the real program, killed, retried, edited, cancelled, restarted."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psutil  # type: ignore[import-untyped]  # no stubs among the project's dependencies
import pytest

from tests.support.program import Program, supervised, turnout, until

FLOWS = Path(__file__).parent / "flows" / "durable.py"

pytestmark = pytest.mark.timeout(90)


class Stage:
    """A running program, a folder its flows write to, and an operator's hands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "seen"
        self.folder.mkdir()
        self.program = Program(
            flows=folder / "durable.py",
            data=folder / "data",
            log=folder / "log",
            env={"TURNOUT_GRACE": "1s"},
        )
        self.program.flows.write_text(FLOWS.read_text())

    def post(self, path: str, body: Any) -> str:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = "text/plain" if isinstance(body, bytes) else "application/json"
        answer = self.program.ask(
            f"/hooks{path}", method="POST", body=sent, headers={"content-type": kind}
        )
        assert answer is not None and answer.status == 202, answer
        return str((answer.json["runs"] or [""])[0])

    def start(self, path: str, **data: Any) -> str:
        """Start a run whose flow takes a dict, or just the folder."""
        return self.post(path, {"folder": str(self.folder), **data})

    def run(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.program.api(f"/runs/{run_id}")
        return found

    def ended(self, run_id: str, timeout: float = 20) -> dict[str, Any]:
        def over() -> dict[str, Any] | None:
            if not self.program.alive:
                return None
            answer = self.program.ask("/readyz")
            if answer is None or answer.status != 200:
                return None
            try:
                run = self.run(run_id)
            except AssertionError:  # it died between two questions
                return None
            return run if run["finished_at"] else None

        return until(over, timeout, f"the end of {run_id}")

    def lines(self) -> list[str]:
        file = self.folder / "lines"
        return file.read_text().splitlines() if file.exists() else []

    def saw(self, line: str) -> None:
        until(lambda: line in self.lines(), 10, f"the line {line!r}, only {self.lines()}")

    def turnout(self, *arguments: str) -> str:
        done = turnout(*arguments, env={"TURNOUT_DATA": str(self.program.data)})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def restart(self) -> None:
        """Kill the program alone, as the kernel would, and start it again."""
        self.program.child.kill()
        self.program.ended(10)
        self.program.start()
        self.program.ready()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    with stage.program.start():
        stage.program.ready()
        yield stage
        if stage.program.alive:
            stage.program.stop()
            stage.program.check_journal()


# ---------------------------------------------------------------- resume


def test_a_mended_run_goes_on_where_it_failed_and_from_any_step(stage: Stage) -> None:
    run_id = stage.post("/abc", str(stage.folder).encode())
    failed = stage.ended(run_id)
    assert failed["error"]["step"] == "c#1" and failed["error"]["type"] == "ConnectionError"
    assert Counter(stage.lines()) == {"a": 1, "b": 1, "c": 3, "tidy": 1}

    stage.program.flows.write_text(FLOWS.read_text() + "\n# mended in the file, too\n")
    (stage.folder / "mended").touch()
    stage.restart()
    stage.turnout("retry", run_id)
    assert stage.ended(run_id)["result"] == "abc"
    assert Counter(stage.lines()) == {"a": 1, "b": 1, "c": 4, "tidy": 1}

    stage.turnout("retry", run_id, "--from", "b")
    assert stage.ended(run_id)["result"] == "abc"
    assert Counter(stage.lines()) == {"a": 1, "b": 2, "c": 5, "tidy": 2}
    shown = stage.turnout("show", run_id)
    assert "c#1" in shown and "succeeded" in shown


SLEEPS = """
from turnout import flow, patched, sleep, task, webhook

@task
async def first() -> str:
    return "first"

@task
async def second() -> str:
    return "second"

@flow(on=webhook("/sleeps"){version})
async def sleeps() -> list[str]:
    found = [await first()]
    {more}await sleep("2s")
    found.append(await second())
    return found
"""


@pytest.mark.parametrize(
    ("version", "more", "outcome"),
    [
        ("", "found.append(await second())\n    ", "code_changed"),
        (', version="1"', "found.append(await second())\n    ", ["first", "second", "second"]),
        ("", 'if patched("more"): found.append(await second())\n    ', ["first", "second"]),
    ],
)
def test_code_that_changes_under_a_waiting_run(
    stage: Stage, version: str, more: str, outcome: Any
) -> None:
    file = stage.program.flows
    file.write_text(SLEEPS.format(version=version, more=""))
    stage.restart()
    run_id = stage.post("/sleeps", {})
    until(lambda: stage.run(run_id)["state"] == "waiting", 10, "the sleep")
    file.write_text(SLEEPS.format(version=version, more=more))
    stage.restart()
    run = stage.ended(run_id)
    if outcome == "code_changed":
        assert run["error"]["type"] == outcome
        assert "step 'second#1' where step 'sleep#1' is recorded" in run["error"]["message"]
    else:
        assert run["result"] == outcome, run["error"]


# ---------------------------------------------------------------- policies


class Grudging(BaseHTTPRequestHandler):
    """Answers 500, then 429 with `Retry-After: 2`, then 200, and notes when it was asked."""

    asked: list[float] = []

    def do_GET(self) -> None:
        self.asked.append(time.monotonic())
        status = (500, 429, 200)[min(len(self.asked), 3) - 1]
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "2")
        self.end_headers()
        self.wfile.write(b"at last")

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_server_that_asks_for_time_gets_it(stage: Stage) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Grudging)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        run = stage.ended(stage.post("/fetches", b"http://127.0.0.1:%d/" % server.server_port))
    finally:
        server.shutdown()
        server.server_close()
    assert run["result"] == "at last" and run["steps"][0]["tries"] == 3
    first, second, third = Grudging.asked
    assert second - first < 1 and 2 <= third - second < 4


def pids(stage: Stage) -> list[int]:
    file = stage.folder / "pids"
    text = until(lambda: file.exists() and file.read_text(), 10, "the process work")
    return [int(word) for word in str(text).split()]


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def until_gone(ids: list[int]) -> None:
    until(lambda: all(map(gone, ids)), 5, f"the end of the processes {ids}")


def test_a_timeout_ends_the_whole_group_of_process_work_and_that_step_only(stage: Stage) -> None:
    run_id = stage.post("/endless", str(stage.folder).encode())
    ids = pids(stage)
    assert len(ids) == 2 and not any(map(gone, ids))
    answer = stage.program.ask("/healthz", timeout=1)
    assert answer is not None and answer.status == 200, "the loop goes on"
    run = stage.ended(run_id)
    assert run["error"]["type"] == "TimeoutError" and run["error"]["step"] == "endless#1"
    until_gone(ids)
    assert "process.started" in stage.turnout("show", run_id), "what was killed has its log"


def test_undone_in_reverse_and_told_once_whatever_crashes_between(stage: Stage) -> None:
    for where in ("undo", "alarm"):
        (stage.folder / f"die-{where}").touch()
    with supervised(stage.program, most_restarts=4) as deaths:
        run = stage.ended(stage.start("/trip"))
    assert len(deaths) == 2, "once in the undo, once in the hook"
    assert run["state"] == "failed" and run["error"]["step"] == "c#1"
    lines = stage.lines()
    assert Counter(lines)["a"] == Counter(lines)["b"] == 1
    assert lines.count("c") == 6, "three tries of the task in each of two attempts"
    # Each was cut off before it was recorded, so it ran again; what was recorded did not.
    assert [line for line in lines if line[0] in "ua" and line != "a"] == [
        "undo flight", "undo flight", "undo hotel",
        "alarm ConnectionError in c#1", "alarm ConnectionError in c#1",
    ]  # fmt: skip
    stage.restart()
    assert stage.lines() == lines, "nothing of it again"


# ---------------------------------------------------------------- kept results


def test_a_result_is_computed_once_for_all_and_over_a_restart(stage: Stage) -> None:
    runs = [stage.start("/costs", number=7) for _ in range(5)]
    assert {stage.ended(run_id)["result"] for run_id in runs} == {14}
    assert stage.lines() == ["costly 7"]
    stage.restart()
    again = stage.start("/costs", number=7)
    assert stage.ended(again)["result"] == 14
    assert stage.lines() == ["costly 7"]
    assert any(
        "cached" in line and f"from run {runs[0]}" in line
        for line in stage.turnout("show", again).splitlines()
    )
    hits = stage.program.metrics("turnout_steps_total")
    assert hits['flow="costs",outcome="cached",task="costly"'] == 1
    assert "1" in stage.turnout("cache", "clear", "costly", "--yes")
    stage.ended(stage.start("/costs", number=7))
    stage.ended(stage.start("/costs", number="7"))
    assert stage.lines() == ["costly 7", "costly 7", "costly 7"]


# ---------------------------------------------------------------- cancelled, killed


def test_a_cancel_reaches_children_threads_processes_and_the_loop(stage: Stage) -> None:
    run_id = stage.start("/wide", parts=["child", "thread", "process", "loop"])
    for line in ("child", "thread wide turnout-step"):
        stage.saw(line)
    ids = pids(stage)
    stage.program.said(rf"process.started.*{run_id}", 10)
    stage.turnout("cancel", run_id)
    until_gone(ids)
    for line in ("thread told", "loop CancelledError", "child left"):
        stage.saw(line)
    stage.program.quiet(10)
    states = {run["flow"]: run["state"] for run in stage.program.api("/runs")["items"]}
    assert states == {"wide": "cancelled", "child": "cancelled"}


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_no_process_outlives_the_service(stage: Stage, how: str) -> None:
    stage.start("/wide", parts=["process"])
    ids = pids(stage)
    if how == "kill":
        stage.program.child.kill()
        stage.program.ended(10)
    else:
        assert stage.program.stop() == 0
    until_gone(ids)


def test_an_event_just_before_the_wait_is_seen_also_over_a_crash(stage: Stage) -> None:
    run_id = stage.start("/early", id="7")
    stage.saw("a")
    stage.post("/told/8", {"word": "not this"})
    stage.post("/told/7", {"word": "before"})
    stage.restart()
    (stage.folder / "go").touch()
    assert stage.ended(run_id)["result"] == "before"
    assert stage.lines() == ["a"]
