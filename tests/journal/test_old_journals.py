"""A journal that an older turnout wrote opens, keeps what it held, and its waiting runs go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data.journals import make
from tests.support.old_service import copy_journal
from tests.support.program import Program, turnout, until

JOURNALS = sorted(make.HERE.glob("v*"))

FOREVER = {f"TURNOUT_{name}": "30000d" for name in ("DEDUPE", "KEEP_FINISHED", "KEEP_FAILED")}

RESULTS: dict[str, Any] = {
    "catches": [
        "kept_types.Refused: order 1 is refused: it is old",
        "1 it is old",
        "builtins.ConnectionResetError: [Errno 104] reset by peer",
        "104",
        "builtins.ExceptionGroup: both (2 sub-exceptions)",
        "builtins.TimeoutError: task 'take_too_long' did not end within its timeout of 0.01s",
    ],
    "values": [
        "Decimal('12.50')",
        "2026-03-28T12:00:00+02:00",
        "datetime.timedelta(days=1, microseconds=1)",
        "Receipt(order=2, seal=(1+2j))",
        "{'set': {1}, 'bytes': b'\\x00\\xff', 'path': PosixPath('a/b'), 7: (1, 2)}",
        "Order(n=2, customer='other')",
        "Order(n=0, customer='other')",
        "turnout.webhook",
        "-2",
    ],
    "calls": 9,
    "child": 8,
    "asks": "5 approved",
    "rejected": "rejected: ops said no: not now",
    "naps": "woke with 12.50",
    "retries": 2,
    "stores": 10_000,
    "looks_up": [12, 12],
    "held": "held 13",
    "told": "told 14",
    "tells": None,
}


@pytest.fixture(params=JOURNALS, ids=lambda path: str(path.name))
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Program]:
    """Serve a copy of an old journal with the flows that wrote it."""
    copy_journal(request.param, tmp_path / "data")
    for name in ("flows.py", "kept_types.py"):
        shutil.copy(make.HERE / name, tmp_path)
    with Program(
        flows=tmp_path / "flows.py",
        data=tmp_path / "data",
        log=tmp_path / "log",
        env={**make.SETTINGS, **FOREVER},
    ) as program:
        program.start().ready()
        yield program


def test_there_are_old_journals() -> None:
    assert JOURNALS


def runs(program: Program) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = program.api("/runs?limit=100")["items"]
    return items


def full(program: Program, flow: str) -> dict[str, Any]:
    (run,) = [run for run in runs(program) if run["flow"] == flow]
    whole: dict[str, Any] = program.api(f"/runs/{run['id']}")
    return whole


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_every_unfinished_run_of_an_old_journal_goes_on_to_its_end(opened: Program) -> None:
    def act(verb: str, flow: str, *options: str) -> None:
        done = turnout(verb, full(opened, flow)["id"], *options, "--data", opened.data, env=env)
        assert done.returncode == 0, done.stderr

    env = opened.env
    assert make.post(opened, "breaks", {"n": 15}, key="breaks-15")["duplicate"]
    act("approve", "asks", "--fields", '{"n": 5, "customer": "approved"}')
    act("approve", "rejected", "--reject", "not now")
    assert turnout("resume", "held", "--data", opened.data, env=env).returncode == 0
    for n in (1, 2, 3, 4, 9, 10, 101, 102, 11):
        make.post(opened, "went-on", {"n": n})
    until(
        lambda: not {run["state"] for run in runs(opened)} - {"succeeded", "failed"},
        30,
        "every run at its end",
    )
    failed = sorted(run["flow"] for run in runs(opened) if run["state"] == "failed")
    assert failed == ["books", "breaks", "fails"]
    for flow, expected in RESULTS.items():
        assert full(opened, flow)["result"] == expected, flow
    assert "StepFailed: child 3 failed" in full(opened, "parent")["result"]
    assert [run["result"] for run in runs(opened)[::-1] if run["flow"] == "ordered"] == [
        10, 101, 102,
    ]  # fmt: skip
    books = full(opened, "books")
    assert books["error"]["message"] == "no longer wanted"
    (undone,) = [step for step in books["steps"] if step["task"].endswith("release")]
    assert undone["state"] == "succeeded", books["steps"]
    died = full(opened, "dies")
    assert died["state"] == "succeeded" and died["result"] is not None
    (booked,) = died["steps"]
    assert json.loads(json.dumps(booked["result"])) == died["result"], "the step ran once"
    assert opened.stop() == 0
    opened.check_journal()
