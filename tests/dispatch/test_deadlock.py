"""A child whose ordering key waits for its own caller is refused; other children wait."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from tests.support.running import Running, running
from turnout import flow, sleep
from turnout.service.domain.event import Event
from turnout.service.domain.run import Run, RunState


def by_key(happened: Event) -> Any:
    return happened.data["key"]


@flow(ordered_by=by_key)
async def ordered(data: dict[str, Any]) -> str:
    if "sleep" in data:
        await sleep(data["sleep"])
    for child in data.get("then", ()):
        await ordered(child)
    if "over" in data:
        await between(data["over"])
    return str(data["key"])


@flow
async def between(data: dict[str, Any]) -> str:
    return await ordered(data)


async def runs_of(folder: Path, *orders: dict[str, Any]) -> list[Run]:
    """Start runs of `ordered` at once, and return them when all have ended."""
    async with running(folder, [ordered, between]) as service:
        service.emitter.flows = lambda _event: (ordered,)
        started = [await send(service, order) for order in orders]
        return [await service.finished(run_id) for run_id in started]


async def send(service: Running, order: dict[str, Any]) -> str:
    return (await service.send(order)).runs[0]


def refusal(run: Run) -> str:
    assert run.state is RunState.FAILED and run.error is not None, run
    return run.error.message


async def test_a_child_on_its_own_callers_key_is_refused(tmp_path: Path) -> None:
    (run,) = await runs_of(tmp_path, {"key": "a", "then": [{"key": "a"}]})
    assert "key 'a' of flow 'ordered' is held until this run ends" in refusal(run)
    assert "ordered_by" in refusal(run)


async def test_a_grandchild_through_another_flow_is_refused(tmp_path: Path) -> None:
    (run,) = await runs_of(tmp_path, {"key": "a", "over": {"key": "a"}})
    assert "is held until a run that waits for this one ends" in refusal(run)


async def test_of_two_runs_that_call_each_others_keys_one_is_refused(tmp_path: Path) -> None:
    left = {"key": "l", "sleep": "50ms", "then": [{"key": "r"}]}
    right = {"key": "r", "sleep": "50ms", "then": [{"key": "l"}]}
    runs = await runs_of(tmp_path, left, right)
    assert sorted(run.state for run in runs) == [RunState.FAILED, RunState.SUCCEEDED]
    (failed,) = (run for run in runs if run.state is RunState.FAILED)
    assert "would wait for ever" in refusal(failed)


async def test_a_child_waits_for_a_key_that_an_unrelated_run_holds(tmp_path: Path) -> None:
    holder = {"key": "b", "sleep": "100ms"}
    caller = {"key": "a", "then": [{"key": "b"}, {"key": "c", "then": [{"key": "b"}]}]}
    first, second = await runs_of(tmp_path, holder, caller)
    assert orjson.loads(second.result or b"") == "a"
    assert first.finished_at is not None and second.finished_at is not None
    assert second.finished_at > first.finished_at
