"""The graph of a run: the order of its steps, what overlapped, branches and child runs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.support.running import running
from turnout import flow, gather, task
from turnout.service.cli import cli
from turnout.service.operate.graph import graph_of

from .mixed_runs import make, run_id


@task
async def pick(n: int) -> int:
    return n


@task
async def meet(n: int) -> int:
    """End when the step of the other branch runs too."""
    BOTH.append(n)
    while len(BOTH) < 2:  # noqa: ASYNC110  an Event would belong to one loop
        await asyncio.sleep(0)
    return n


BOTH: list[int] = []


@task
async def pack(n: int) -> int:
    return n


@flow
async def ship(n: int) -> int:
    return await pick(n)


@flow
async def order() -> None:
    async def branch(n: int) -> None:
        await meet(n)
        await pack(n)

    await pick(0)
    await gather(branch(1), branch(2))
    await pack.map([1, 2])
    await ship(7)


async def test_it_has_branches_the_order_and_the_child(tmp_path: Path) -> None:
    async with running(tmp_path, [order, ship]) as service:
        run = await service.finished((await service.send({"n": 1})).runs[0])
        document = await graph_of(service.process.journal, run.id)
    steps = {step["key"]: step for step in document["steps"]}
    assert (next(iter(steps)), list(steps)[-1]) == ("pick#1", "ship#1")
    assert steps["gather#1[0]/meet#1"]["branch"] == "gather#1[0]"
    for branch in ("gather#1[0]", "gather#1[1]"):
        assert steps[f"{branch}/meet#1"]["after"] == ["pick#1"]
    child = steps["ship#1"]["child"]
    assert (child["flow"], child["state"]) == ("ship", "succeeded")
    assert [step["key"] for step in child["steps"]] == ["pick#1"]
    assert steps["pack.map#1[1]"]["branch"] is None


def typed(data: Path, *words: str) -> str:
    done = CliRunner().invoke(cli, [*words, "--data", str(data)])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph") / "data"
    make(folder)
    return folder


def test_bars_of_steps_that_overlapped_begin_together(data: Path) -> None:
    lines = typed(data, "graph", run_id(22)).splitlines()
    [first, second] = [line for line in lines if line.lstrip().startswith("pick#1")]
    assert first.index("█") == second.index("█")
    [pack] = [line for line in lines if "pack#1" in line and "failed" in line]
    assert pack.index("█") > first.rindex("█")


def test_of_many_branches_the_first_are_shown_and_those_that_failed(data: Path) -> None:
    text = typed(data, "graph", run_id(22))
    assert "label.map#1, 14 branches" in text and "… 2 more branches" in text


def test_json_has_the_fields_that_the_api_has(data: Path) -> None:
    document: dict[str, Any] = json.loads(typed(data, "graph", run_id(22)[-8:], "--json"))
    assert document["run"] == run_id(22)
    assert document["steps"][-2]["child"]["run"] == run_id(1)


def test_a_mermaid_diagram_has_a_section_for_each_branch_and_child(data: Path) -> None:
    text = typed(data, "graph", run_id(22), "--mermaid")
    assert text.startswith("gantt\n    title run ")
    assert "    section gather 1[0]\n    pick 1 :done, " in text
    assert "    pack 1 :crit, " in text
    assert f"    section nightly_report {run_id(1)[-8:]}\n" in text


def test_a_run_without_steps_says_so(data: Path) -> None:
    assert "no step is recorded" in typed(data, "graph", run_id(7))
