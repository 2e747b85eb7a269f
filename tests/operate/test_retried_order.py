"""What is queued again goes behind the others of its ordering key, over kills: from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.program import Program, turnout, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

FLOWS = """
from pathlib import Path
from turnout import flow, task, webhook

HERE = Path(__file__).parent

@task
async def prepare(number: int) -> None: ...

async def work(name: str, number: int) -> None:
    await prepare(number)
    if number < 0 and not (HERE / "mended").exists():
        raise ValueError("not today")
    with (HERE / name).open("a") as lines:
        lines.write(f"{number}\\n")

@flow(on=webhook("/continue"), ordered_by=lambda event: "key")
async def goes_on(data: dict) -> None:
    await work("continue", data["n"])

@flow(on=webhook("/block"), ordered_by=lambda event: "key", on_dead="block")
async def blocks(data: dict) -> None:
    await work("block", data["n"])
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    flows = tmp_path / "flows.py"
    flows.write_text(FLOWS)
    with Program(flows=flows, data=tmp_path / "data", log=tmp_path / "log") as program:
        program.start().ready()
        yield program


def command(program: Program, *words: str) -> None:
    done = turnout(*words, "--data", program.data, env=program.env)
    assert done.returncode == 0, done.stderr


def is_failed(program: Program, run_id: str) -> Callable[[], bool]:
    return lambda: bool(program.api(f"/runs/{run_id}")["state"] == "failed")


def fail(program: Program, path: str, number: int) -> str:
    """Send an event whose run fails; returns the run."""
    run_id = program.post(path, {"n": number})
    until(is_failed(program, run_id), 20, "a dead letter")
    return run_id


def wait_behind(program: Program, path: str, *numbers: int) -> None:
    """Send events whose runs wait: everything is paused."""
    command(program, "pause", "--all")
    for number in numbers:
        program.post(path, {"n": number})


def order_after_a_kill(program: Program, path: str) -> list[int]:
    """Kill the program and let the next one do what is queued; returns in which order."""
    if program.alive:
        program.kill()
    (program.flows.parent / "mended").touch()
    program.start().ready()
    command(program, "resume", "--all")
    until(lambda: program.unfinished() == 0, 20, "the end of all runs")
    return [int(line) for line in (program.flows.parent / path).read_text().splitlines()]


@pytest.mark.parametrize(
    "words",
    [
        ["retry", "RUN"],
        ["retry", "RUN", "--from", "prepare"],
        ["dead", "replay", "RUN"],
        ["replay", "EVENT"],
    ],
    ids=" ".join,
)
def test_a_dead_letter_goes_behind_what_waits(program: Program, words: list[str]) -> None:
    run_id = fail(program, "continue", -1)
    wait_behind(program, "continue", 2, 3)
    given = {"RUN": run_id, "EVENT": str(program.api(f"/runs/{run_id}")["event_id"])}
    command(program, *(given.get(word, word) for word in words))
    program.post("continue", {"n": 4})
    assert order_after_a_kill(program, "continue") == [2, 3, -1, 4]


@pytest.mark.parametrize("words", [["retry"], ["dead", "replay"]], ids=" ".join)
def test_many_at_once_keep_the_order_of_their_events(program: Program, words: list[str]) -> None:
    for number in (-1, -2, -3):
        fail(program, "continue", number)
    wait_behind(program, "continue", 4)
    command(program, *words, "--flow", "goes_on", "--yes")
    assert order_after_a_kill(program, "continue") == [4, -1, -2, -3]


def test_a_dead_letter_that_blocks_its_key_keeps_its_place(program: Program) -> None:
    run_id = fail(program, "block", -1)
    wait_behind(program, "block", 2, 3)
    command(program, "retry", run_id)
    assert order_after_a_kill(program, "block") == [-1, 2, 3]


@pytest.mark.parametrize("path", ["continue", "block"])
def test_a_dead_letter_that_may_block_keeps_its_place_while_no_service_says(
    program: Program, path: str
) -> None:
    run_id = fail(program, path, -1)
    wait_behind(program, path, 2, 3)
    program.kill()
    command(program, "retry", run_id)
    assert order_after_a_kill(program, path) == [-1, 2, 3]


def test_a_run_that_is_no_dead_letter_goes_behind_also_while_no_service_runs(
    program: Program,
) -> None:
    run_id = fail(program, "block", -1)
    wait_behind(program, "block", 2, 3)
    command(program, "dead", "drop", run_id)
    program.kill()
    command(program, "retry", run_id)
    assert order_after_a_kill(program, "block") == [2, 3, -1]
