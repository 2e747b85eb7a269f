"""A kill right behind the write that ends a parent: its children are not left running."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.program import until

from .crash_battery import crashing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

FLOWS = """
from turnout import Fail, flow, gather, sleep, webhook

@flow
async def child() -> None:
    await grandchild()

@flow
async def grandchild() -> None:
    await sleep("1h")

@flow
async def fails() -> None:
    raise Fail("no use")

@flow(on=webhook("/parents"))
async def parent() -> None:
    await gather(child(), fails())
"""


def test_no_child_outlives_a_parent_whose_failure_was_the_last_write(tmp_path: Path) -> None:
    flows = tmp_path / "flows.py"
    flows.write_text(FLOWS)
    (tmp_path / "plan").write_text("parent failed|1")
    with crashing(tmp_path, flows, "", {}) as program:
        program.start().ready()
        program.post("parents", {})
        until(lambda: not program.alive, 30, "the kill")
        program.start().ready()
        runs = {run["flow"]: run for run in program.api("/runs")["items"]}
    states = {flow: run["state"] for flow, run in runs.items()}
    assert states == {
        "parent": "failed", "fails": "failed", "child": "cancelled", "grandchild": "cancelled",
    }  # fmt: skip
    assert runs["child"]["reason"] == f"run {runs['parent']['id']}, its parent, has ended"
