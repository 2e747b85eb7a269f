"""Many child runs at once, and over a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import eventually, running
from turnout import flow, gather
from turnout.service.domain.run import RunState
from turnout.service.journal.records import StepRecord
from turnout.service.journal.sqlite import claims
from turnout.service.journal.sqlite.steps import step_from
from turnout.service.steps.step import StepCall

from .families import done, nothing_done, patient, result, run_of, runs_of, slow, start, until_state

__all__ = ["nothing_done"]  # the fixture


# ---------------------------------------------------------------- many at once

now_running = 0
most_running = 0


@flow
async def double(number: int) -> int:
    global now_running, most_running
    now_running += 1
    most_running = max(most_running, now_running)
    await asyncio.sleep(0.005)
    now_running -= 1
    return number * 2


@flow
async def fans_out() -> list[int]:
    return await double.map(range(12), limit=3)


@flow
async def gathers() -> Any:
    return await gather(*(double(number) for number in range(5)))


async def test_a_map_starts_at_most_so_many_and_keeps_the_order(tmp_path: Path) -> None:
    global most_running
    most_running = 0
    async with running(tmp_path, [fans_out, double]) as service:
        parent = await run_of(service, fans_out)
        children = await runs_of(service, "double")
    assert result(parent) == [number * 2 for number in range(12)]
    assert len(children) == 12 and most_running <= 3


async def test_children_gathered_run_at_once_and_once(tmp_path: Path) -> None:
    async with running(tmp_path, [gathers, double], concurrency=2) as service:
        assert result(await run_of(service, gathers)) == [0, 2, 4, 6, 8]
        assert len(await runs_of(service, "double")) == 5


@flow
async def countdown(number: int) -> int:
    return 0 if number == 0 else 1 + await countdown(number - 1)


async def test_flows_that_wait_for_each_other_need_no_second_slot(tmp_path: Path) -> None:
    async with running(tmp_path, [countdown], concurrency=1) as service:
        assert result(await run_of(service, countdown, 6)) == 6


async def test_a_chain_without_end_is_ended(tmp_path: Path) -> None:
    async with running(tmp_path, [countdown]) as service:
        run = await run_of(service, countdown, 1000)
    assert run.error is not None and "is it a cycle?" in run.error.message


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_a_wide_map_costs_each_child_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map is woken for every few children; what it reads again must not grow with the others."""
    global width
    looked_at: list[str] = []
    read, recorded, recall = step_from, StepCall.recorded, StepCall.recall

    def counted_read(row: Any) -> Any:
        looked_at.append("read")
        return read(row)

    def counted_look(call: StepCall) -> Any:
        looked_at.append("looked")
        return recorded(call)

    def counted_recall(call: StepCall, known: StepRecord) -> Any:
        looked_at.append("recalled")
        return recall(call, known)

    monkeypatch.setattr(claims, "step_from", counted_read)
    monkeypatch.setattr(StepCall, "recorded", counted_look)
    monkeypatch.setattr(StepCall, "recall", counted_recall)
    costs = []
    for width in (200, 800):
        looked_at.clear()
        async with running(tmp_path / str(width), [fans_wide, double]) as service:
            parent = await run_of(service, fans_wide)
            assert result(parent) == [number * 2 for number in range(width)]
        costs.append(len(looked_at) / width)
    few, many = costs
    assert many < 1.5 * few, costs


width = 0


@flow
async def fans_wide() -> list[int]:
    return await double.map(range(width), limit=8)


@flow
async def long_word(number: int) -> str:
    return str(number) * 10_000


@flow
async def collects() -> int:
    words = await long_word.map(range(20), limit=4)
    assert words == [str(number) * 10_000 for number in range(20)]
    return sum(map(len, words))


async def test_large_results_of_children_come_back_too(tmp_path: Path) -> None:
    async with running(tmp_path, [collects, long_word]) as service:
        assert result(await run_of(service, collects)) == 300_000


@flow
async def far() -> int:
    return 2**70


@flow
async def goes_far() -> list[Any]:
    return [await far(), await far() == 2**70]


async def test_a_large_integer_of_a_child_is_no_float(tmp_path: Path) -> None:
    async with running(tmp_path, [goes_far, far]) as service:
        run = await run_of(service, goes_far)
    assert run.as_dict()["result"] == [2**70, True]


async def test_a_wide_map_goes_on_over_a_restart(tmp_path: Path) -> None:
    global width
    width = 150
    async with running(tmp_path, [fans_wide, double]) as service:
        start(service, fans_wide)
        run_id = (await service.send()).runs[0]

        async def half_way() -> bool:
            return len(await runs_of(service, "double")) > 80

        await eventually(half_way)
    async with running(tmp_path, [fans_wide, double]) as service:
        assert result(await service.finished(run_id)) == [number * 2 for number in range(150)]
        assert len(await runs_of(service, "double")) == 150


# ---------------------------------------------------------------- restart and cancel


async def test_parent_and_child_go_on_over_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path, [patient, slow]) as service:
        start(service, patient)
        run_id = (await service.send()).runs[0]
        await until_state(service, run_id, RunState.WAITING)
    async with running(tmp_path, [patient, slow]) as service:
        assert result(await service.finished(run_id)) == "child!"
        assert len(await runs_of(service, "slow")) == 1
    assert done == ["slow child"]
