"""Flows that train models: AutoGluon and H2O, each in an environment of its own, for real.

The environment goes before ours: AutoGluon does not take the pandas of these tests.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # no stubs
import pytest

from tests.conftest import Say
from tests.support import CHECKOUT
from tests.support.boundaries import library_of
from tests.support.processes import Mark
from tests.support.program import Program, until

pytestmark = [pytest.mark.full, pytest.mark.alone, pytest.mark.timeout(900)]

EXAMPLES = CHECKOUT / "handlers" / "examples" / "ai"
TOKEN = "the-token-of-this-test"
Edits = Sequence[tuple[str, str]]
"""What is replaced in the source of an example, and by what."""


def start(folder: Path, example: str, peer: str, mark: Mark, edits: Edits = ()) -> Program:
    """Start an example, edited, in a folder of its own."""
    (folder / "training").mkdir()
    source = (EXAMPLES / f"{example}.py").read_text()
    for old, new in edits:
        assert old in source
        source = source.replace(old, new)
    flows = folder / f"{example}.py"
    flows.write_text(source)
    program = Program(
        flows=flows,
        data=folder / "data",
        log=folder / "log",
        env={"TURNOUT_API_TOKEN": TOKEN, **mark.env},
        prefix=("env", "-C", str(folder)),
        sabotage=f"import sys; sys.path.insert(1, {str(library_of(peer))!r})\n",
    ).start()
    program.ready(120)
    return program


def drop(folder: Path) -> None:
    """Drop rows whose label is whether x is more than a half, nearly."""
    draw = random.Random(7)
    rows = ["x,y,label"]
    for _ in range(400):
        x, y = draw.random(), draw.random()
        rows.append(f"{x:.4f},{y:.4f},{int(x + 0.1 * y > 0.55)}")
    (folder / "rows.part").write_text("\n".join(rows) + "\n")
    (folder / "rows.part").rename(folder / "training" / "rows.csv")


def runs(program: Program) -> list[dict[str, Any]]:
    try:
        listed: list[dict[str, Any]] = program.api("/runs")["items"]
    except AssertionError:  # no answer in time
        return []
    return listed


def p99(program: Program, until_over: Any) -> float:
    """Return the p99 of `/healthz`, asked until it is over."""
    answered: list[float] = []
    while not until_over():
        for _ in range(50):
            started = time.monotonic()
            answer = program.ask("/healthz", timeout=30)
            answered.append(time.monotonic() - started)
            assert answer is not None and answer.status == 200
            time.sleep(0.01)
    return sorted(answered)[int(len(answered) * 0.99)]


def trained(folder: Path, example: str, peer: str, say: Say) -> dict[str, Any]:
    """Train, and hold the service's p99 meanwhile against that at rest; returns the run."""
    with start(folder, example, peer, mark := Mark()) as program:
        rounds = iter([False] * 10)
        at_rest = p99(program, lambda: next(rounds, True))
        drop(folder)
        meanwhile = p99(program, lambda: any(run["finished_at"] for run in runs(program)))
        (run,) = until(lambda: runs(program), 30, "the run")
        assert run["state"] == "succeeded", run["error"]
        say(f"p99 of /healthz: {at_rest:.3f} s at rest, {meanwhile:.3f} s while {peer} trains")
        assert meanwhile < max(0.1, 2 * at_rest)
        until(lambda: not java(mark), 20, "the end of Java")
    return run


def java(mark: Mark) -> list[str]:
    found = []
    for process in mark.found():
        try:
            found += [str(process)] if "java" in process.name() else []
        except psutil.Error:
            continue
    return found


def test_autogluon_trains_beside_the_service(tmp_path: Path, say: Say) -> None:
    run = trained(tmp_path, "leaderboard", "autogluon", say)
    assert max(run["result"]["scores"].values()) > 0.8
    assert (tmp_path / run["result"]["folder"] / "predictor.pkl").exists()


def test_h2o_trains_beside_the_service(tmp_path: Path, say: Say) -> None:
    run = trained(tmp_path, "automl", "h2o", say)
    header, *models = run["result"]
    assert header[0] == "model_id" and len(models) >= 2


@pytest.mark.parametrize("end", ["cancel", "kill", "stop"])
def test_the_java_of_h2o_is_gone_when_the_run_is(tmp_path: Path, end: str) -> None:
    with start(tmp_path, "automl", "h2o", mark := Mark()) as program:
        drop(tmp_path)
        until(lambda: java(mark), 120, "the server of H2O")
        if end == "cancel":
            (run,) = until(lambda: runs(program), 30, "the run")
            headers = {"Authorization": f"Bearer {TOKEN}"}
            path = f"/api/runs/{run['id']}/cancel"
            answer = program.ask(path, method="POST", headers=headers, timeout=30)
            assert answer is not None and answer.status in (200, 202)
        elif end == "kill":
            program.kill()
        else:
            program.signal(signal.SIGTERM)
            program.ended(90)
        until(lambda: not java(mark), 60, f"no Java, but {java(mark)}")


@pytest.mark.parametrize(
    ("example", "peer", "edits"),
    [
        ("leaderboard", "autogluon", [("    board =", "    while True: pass\n    board =")]),
        ("automl", "h2o", [("automl.train(", "while True: automl.train(")]),
    ],
)
def test_a_training_that_takes_too_long_is_ended_with_all_it_started(
    tmp_path: Path, example: str, peer: str, edits: Edits
) -> None:
    edits = [*edits, ('timeout="2h"', 'timeout="60s"')]
    with start(tmp_path, example, peer, mark := Mark(), edits) as program:
        drop(tmp_path)
        until(lambda: training(mark), 60, "a training")
        (run,) = until(
            lambda: [each for each in runs(program) if each["finished_at"]], 120, "the timeout"
        )
        assert (run["state"], run["error"]["type"]) == ("failed", "TimeoutError")
        until(lambda: not training(mark), 20, f"nothing left, but {training(mark)}")
        assert program.ask("/healthz", timeout=30) is not None


def training(mark: Mark) -> list[str]:
    """Return the processes that have loaded LightGBM, or are H2O's."""
    return java(mark) + [str(each) for each in mark.found() if "lightgbm" in loaded(each)]


def loaded(process: psutil.Process) -> str:
    try:
        return " ".join(each.path for each in process.memory_maps())
    except psutil.Error:  # it has ended
        return ""
