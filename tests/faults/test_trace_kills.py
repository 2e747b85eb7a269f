"""SIGKILL at random of a traced service: each span once, no orphan, one root for each run."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Say
from tests.support.collector import Collector, collecting, noted
from tests.support.program import Program, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FLOWS = """
import asyncio
from turnout import current, emit, event, flow, gather, sleep, task, webhook

@task(retry=2)
async def step(name: str) -> str:
    await asyncio.sleep(0.01)
    return name

@flow
async def pack(name: str) -> str:
    await step(name)
    await sleep("50ms")
    return await step("last")

@flow(on=webhook("/order"), concurrency=50)
async def order() -> None:
    await step("1")
    await gather(pack("a"), pack("b"))
    await step("2")
    await sleep("100ms")
    await emit("order.done", {})
    await step("5")

@flow(on=event("order.done"), concurrency=50)
async def done() -> None:
    await step("done")
"""


def at_most_left(program: Program, count: int) -> bool:
    return program.unfinished() <= count


def all_noted(program: Program, collector: Collector) -> bool:
    return noted(program.data) == len(collector.runs())


def test_each_span_comes_once_and_under_its_parent(tmp_path: Path, say: Say, full: bool) -> None:
    kills = 40 if full else 3
    (tmp_path / "flows.py").write_text(FLOWS)
    chance = random.Random(kills)
    with collecting() as collector:
        program = Program(
            flows=tmp_path / "flows.py", data=tmp_path / "data", log=tmp_path / "log",
            env=collector.env,
        )  # fmt: skip
        runs: list[str] = []
        with program:
            for _ in range(kills):
                program.start().ready()
                runs += [program.post("order", {}) for _ in range(5)]
                left = chance.randrange(8)
                until(partial(at_most_left, program, left), 30, "the moment of the kill")
                # What the collector has taken while its answer is on its way is sent once more.
                with collector.shut():
                    until(partial(all_noted, program, collector), 30, "a note of what was taken")
                    program.kill()
            program.start().ready()
            program.quiet(60)
            until(lambda: len(collector.named("run done")) >= len(runs), 40, "the last runs")
            assert program.stop() == 0
        assert collector.problems() == []
        roots = [span for span in collector.spans if not span.parent]
        assert sorted(each.attributes["turnout.run.id"] for each in roots) == sorted(runs)
        assert {each.name for each in roots} == {"run order"}
        for run in roots:
            of_run = [span for span in collector.spans if span.trace == run.trace]
            below = [span.name for span in of_run if span.name.startswith("run ")]
            assert sorted(below) == ["run done", "run order", "run pack", "run pack"]
        died = sum(int(each.attributes.get("turnout.run.crashes", 0)) for each in roots)
        say(f"{kills} kills, {len(runs)} traced runs, {died} deaths, {len(collector.spans)} spans")
