"""A timeout counts from the start of the work, and what waits for a thread, or is late, is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.program import Program, turnout, until
from tests.support.running import eventually, running
from turnout import flow, gather, task
from turnout.service.domain.event import Event
from turnout.service.domain.run import RunState
from turnout.service.pools import Pools, limit

pytestmark = pytest.mark.slow

SECONDS = 0.3
"""How long the work takes, of a timeout in which only one of them would fit."""


def doze() -> str:
    time.sleep(SECONDS)
    return "rested"


@asynccontextmanager
async def pools(threads: int = 1) -> AsyncIterator[Pools]:
    made = Pools(threads, 1)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("pool", ["thread", "process"])
async def test_a_call_that_waits_for_its_place_spends_none_of_its_timeout(pool: Any) -> None:
    async with pools() as made:
        calls = [made.call(doze, (), {}, pool=pool, timeout_seconds=SECONDS * 2) for _ in range(4)]
        assert await asyncio.gather(*calls) == ["rested"] * 4


@pytest.mark.parametrize("pool", ["thread", "process"])
async def test_a_call_that_takes_too_long_fails_by_its_timeout(pool: Any) -> None:
    async with pools() as made:
        with pytest.raises(TimeoutError, match=r"^doze did not end within its timeout of 0.1s$"):
            await made.call(doze, (), {}, pool=pool, timeout_seconds=0.1)


async def test_a_call_cancelled_while_it_waits_never_runs_and_waits_no_more() -> None:
    ran: list[int] = []
    async with pools() as made:

        async def waits() -> bool:
            return made.waiting["flow threads"] == 1

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(made.call(doze, (), {}))
            second = tasks.create_task(made.call(ran.append, (1,), {}, timeout_seconds=5))
            await eventually(waits)
            second.cancel()
        none = {"flow threads": 0, "step threads": 0, "processes": 0}
        assert (made.waiting, made.working) == (none, none)
    assert not ran


async def test_more_runs_and_steps_of_threads_than_there_are_threads_all_succeed(
    tmp_path: Path,
) -> None:
    @flow(timeout=SECONDS_TEXT)
    def works(event: Event) -> str:
        return doze()

    @task(timeout=SECONDS_TEXT)
    def step() -> str:
        return doze()

    @flow
    async def steps(event: Event) -> list[str]:
        return list(await gather(*(step.run() for _ in range(4))))

    async with running(tmp_path, [works, steps], threads=2) as service:
        for number in range(4):
            await service.send(number)
        runs = await service.all_finished()
    assert [run.state for run in runs] == [RunState.SUCCEEDED] * 8


SECONDS_TEXT = f"{int(SECONDS * 2000)}ms"


async def test_what_comes_after_the_timeout_on_the_loop_is_no_result(tmp_path: Path) -> None:
    @flow(timeout="50ms")
    async def swallows(event: Event) -> str:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            return "in spite of it"
        return "in time"

    @flow(timeout="50ms")
    async def blocks(event: Event) -> str:
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            pass
        return "late"

    @flow(timeout="5s")
    async def quick(event: Event) -> str:
        return "in time"

    async with running(tmp_path, [swallows, blocks, quick]) as service:
        await service.send()
        late, later, fine = await service.all_finished()
    for run in (late, later):
        assert run.error is not None
        assert run.error.type == "TimeoutError"
        assert run.error.message.endswith("did not end within its timeout of 0.05s")
    assert fine.state is RunState.SUCCEEDED


async def test_a_call_that_ignores_its_timeout_is_told_of_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(limit, "PATIENCE_SECONDS", 0.05)
    go_on = asyncio.Event()

    @flow(timeout="10ms")
    async def stubborn(event: Event) -> None:
        while not go_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go_on.wait()

    async with running(tmp_path, [stubborn]) as service:
        receipt = await service.send()

        async def told() -> bool:
            return bool(service.process.warnings())

        await eventually(told)
        assert service.process.warnings() == [
            "calls that go on after their timeout: 1, of flow 'stubborn'"
        ]
        go_on.set()
        run = await service.finished(receipt.runs[0])
        assert run.state is RunState.FAILED
        assert not service.process.warnings()
        (attempt,) = await service.process.journal.attempts(run.seq)
        assert attempt.log is not None
        assert b"timeout.ignored" in attempt.log


FLOWS = """
import time
from turnout import event, flow

@flow(on=event("work"))
def work() -> None:
    time.sleep(60)
"""


def test_runs_that_wait_for_a_thread_are_told_of_by_readyz_show_metrics_and_log(
    tmp_path: Path,
) -> None:
    flows = tmp_path / "flows.py"
    flows.write_text(FLOWS)
    data = tmp_path / "data"
    env = {"TURNOUT_THREADS": "1", "TURNOUT_GRACE": "100ms", "TURNOUT_LOG_FORMAT": "json"}
    program = Program(flows=flows, data=data, log=tmp_path / "log", env=env)
    with program.start():
        program.ready()
        runs = [json.loads(emit(program).stdout)["runs"][0] for _ in range(2)]
        program.said(r"pool\.exhausted.*flow threads", 10)
        ready = program.ask("/readyz")
        assert ready is not None
        assert ready.json["ready"]
        (warning,) = ready.json["warnings"]
        assert warning.startswith("all 1 flow threads are busy; calls that wait for one: 1")
        for name in ("waiting", "used", "max"):
            assert program.metrics(f"turnout_pool_{name}")['pool="flow threads"'] == 1
        shown = [turnout("show", run, "--json", "--data", data).stdout for run in runs]
        assert [json.loads(text)["waits_for"] for text in shown] == [
            None,
            "one of the 1 flow threads, which are all busy",
        ]
        assert "waits     one of t" in turnout("show", runs[1], "--data", data).stdout


def emit(program: Program) -> Any:
    file = program.data.parent / "event.json"
    event = {"specversion": "1.0", "type": "work", "source": "/t", "id": str(time.time_ns())}
    file.write_text(json.dumps(event))
    return until(lambda: turnout("emit", file, "--json", "--data", program.data), 10, "an emit")
