"""Flows that train models: AutoGluon and H2O, each in an environment of its own, for real.

The environment goes before ours: AutoGluon does not take the pandas of these tests.
"""

from __future__ import annotations

import random
import signal
import time
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


def start(folder: Path, example: str, peer: str, mark: Mark) -> Program:
    """Start an example in a folder of its own."""
    (folder / "training").mkdir()
    program = Program(
        flows=EXAMPLES / f"{example}.py",
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
