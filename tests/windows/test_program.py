"""Open windows of the real program: over kills, stops, reloads, and a clock that is set back."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.injected_clock import InjectedClock
from tests.support.program import Program, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

FLOWS = """
from pathlib import Path
from turnout import batch, debounce, files, flow, move, webhook

HERE = Path(__file__).parent

@flow(on=debounce(webhook("/page"), "3s", keep="all", per=lambda event: event.data["key"]))
async def index(pages: list[dict]) -> list[int]:
    return [page["n"] for page in pages]

@flow(on=batch(files(f"{HERE}/in/*.txt", settle="10ms", then=move("done/")), 3, "1s"))
async def digest(paths: list[Path]) -> list[str]:
    return [path.read_text() for path in paths]
"""


@pytest.fixture
def clock(tmp_path: Path) -> InjectedClock:
    return InjectedClock(tmp_path)


@pytest.fixture
def program(tmp_path: Path, clock: InjectedClock) -> Iterator[Program]:
    (tmp_path / "in").mkdir()
    flows = tmp_path / "flows.py"
    flows.write_text(FLOWS)
    with Program(
        flows=flows, data=tmp_path / "data", log=tmp_path / "log", env=clock.env
    ) as program:
        yield program


def post(program: Program, number: int, key: str = "a") -> dict[str, Any]:
    body = json.dumps({"n": number, "key": key}).encode()
    answer = program.ask("/hooks/page", method="POST", body=body)
    assert answer is not None and answer.status == 202, answer
    told: dict[str, Any] = answer.json
    return told


def run_of(program: Program, run_id: str) -> dict[str, Any]:
    document: dict[str, Any] = program.api(f"/runs/{run_id}")
    return document


def ended(program: Program, run_id: str, within: float = 20) -> dict[str, Any]:
    until(lambda: run_of(program, run_id)["state"] == "succeeded", within, f"{run_id} succeeds")
    return run_of(program, run_id)


def all_runs(program: Program, flow: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = program.api(f"/runs?flow={flow}")["items"]
    return items


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_window_open_over_the_end_of_the_process_fires_once_with_every_event(
    program: Program, how: str
) -> None:
    program.start().ready()
    (run,) = post(program, 1)["runs"]
    assert post(program, 2)["runs"] == [run]
    scheduled = run_of(program, run)
    assert (scheduled["state"], scheduled["events"]) == ("scheduled", 2)
    assert scheduled["due_at"] is not None
    if how == "kill":
        program.kill()
    else:
        assert program.stop() == 0
    program.start().ready()
    found = ended(program, run)
    assert found["result"] == [1, 2]
    assert [each["id"] for each in all_runs(program, "index")] == [run]
    program.stop()
    program.check_journal()


def test_a_window_open_over_a_reload_fires_at_its_time(program: Program) -> None:
    program.start().ready()
    (run,) = post(program, 1)["runs"]
    program.flows.write_text(FLOWS.replace('"3s"', '"1h"'))
    program.signal(signal.SIGHUP)
    program.said("reload.done", 20)
    assert ended(program, run)["result"] == [1]  # it was opened with three seconds
    other = post(program, 2)
    until(lambda: run_of(program, other["runs"][0])["state"] == "scheduled", 5, "an hour to wait")


def test_a_window_open_while_the_clock_is_set_back_an_hour_fires_at_its_time(
    program: Program, clock: InjectedClock
) -> None:
    program.start().ready()
    (run,) = post(program, 1)["runs"]
    clock.set("-1h")
    assert ended(program, run)["result"] == [1]
    (run,) = post(program, 2)["runs"]
    program.kill()
    clock.set("-2h")
    program.start().ready()
    assert ended(program, run)["result"] == [2]


def test_files_of_a_batch_are_moved_after_its_run_and_never_before(
    program: Program, tmp_path: Path
) -> None:
    program.start().ready()
    for number in range(4):
        (tmp_path / "in" / f"{number}.txt").write_text(str(number))
    until(lambda: len(all_runs(program, "digest")) == 2, 20, "two batches")
    for run in all_runs(program, "digest"):
        ended(program, run["id"])
    until(lambda: not list((tmp_path / "in").glob("*.txt")), 10, "all files are moved")
    assert sorted(path.name for path in (tmp_path / "in" / "done").iterdir()) == [
        "0.txt", "1.txt", "2.txt", "3.txt",
    ]  # fmt: skip
    results = [text for run in all_runs(program, "digest") for text in run["result"]]
    assert sorted(results) == ["0", "1", "2", "3"]


def test_a_file_under_a_debounce_is_moved_after_its_run_and_never_before(
    program: Program, tmp_path: Path
) -> None:
    batched = """batch(files(f"{HERE}/in/*.txt", settle="10ms", then=move("done/")), 3, "1s")"""
    assert batched in FLOWS
    debounced = batched.replace("batch(", "debounce(").replace(', 3, "1s"', ', "1s", keep="all"')
    program.flows.write_text(
        FLOWS.replace(batched, debounced).replace("path.read_text()", "str(path.resolve())")
    )
    program.start().ready()
    file = tmp_path / "in" / "a.txt"
    file.write_text("a")
    until(lambda: all_runs(program, "digest"), 20, "the file is in a window")
    (run,) = all_runs(program, "digest")
    assert run["state"] == "succeeded" or file.exists()
    assert ended(program, run["id"])["result"] == [str(file)], "its run found it where it was"
    until(lambda: (tmp_path / "in" / "done" / "a.txt").exists(), 10, "the file is moved")
    until(lambda: not file.exists(), 10, "it is linked to its new name first")
