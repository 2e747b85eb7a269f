"""`sys.exit()` in asyncio tasks and callbacks of an author: it ends a run, not the service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.program import Program, until

FLOWS = """
import asyncio, sys
from turnout import flow, task, webhook

async def leaves(after: float = 0) -> None:
    await asyncio.sleep(after)
    sys.exit("goodbye")

@flow(on=webhook("/awaited"))
async def awaited() -> None:
    await asyncio.create_task(leaves())

@flow(on=webhook("/group"))
async def group() -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(leaves(0.01))
        tasks.create_task(asyncio.sleep(60))

@task
async def work() -> None:
    await asyncio.gather(leaves(), asyncio.sleep(60))

@flow(on=webhook("/step"))
async def step() -> None:
    await work()

@flow(on=webhook("/callback"))
async def callback() -> str:
    asyncio.get_running_loop().call_soon(sys.exit, 4)
    await asyncio.sleep(0.05)
    return "well"
"""

ENDS = {"awaited": "failed", "group": "failed", "step": "failed", "callback": "succeeded"}


@pytest.mark.timeout(60)
@pytest.mark.slow
def test_an_exit_in_an_authors_own_task_ends_its_run_only(tmp_path: Path) -> None:
    flows = tmp_path / "flows.py"
    flows.write_text(FLOWS)
    program = Program(flows=flows, data=tmp_path / "data", log=tmp_path / "log")
    with program.start():
        program.ready()
        for name, end in ENDS.items():
            answer = program.ask(f"/hooks/{name}", method="POST", body=b"")
            assert answer is not None and answer.status == 202, answer
            (run_id,) = answer.json["runs"]
            run = _finished(program, run_id)
            assert run["state"] == end, run
            if end == "failed":
                assert (run["error"]["type"], run["error"]["message"]) == ("SystemExit", "goodbye")
                assert run["crashes"] == 0
        program.check_journal()


def _finished(program: Program, run_id: str) -> dict[str, Any]:
    until(lambda: program.api(f"/runs/{run_id}")["finished_at"], 10, "the end of the run")
    run: dict[str, Any] = program.api(f"/runs/{run_id}")
    return run
