"""Runs from their event to their end: order, limits, retries, and how an attempt can end."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support import inside
from tests.support.running import eventually, running
from turnout import Fail, Skip, current, flow, gather, limit, retry, task
from turnout.service.dispatch.memory import WINDOW
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import RunState


async def test_an_event_becomes_a_succeeded_run(tmp_path: Path) -> None:
    @flow
    async def double(event: Event) -> int:
        return int(event.data) * 2

    async with running(tmp_path, [double]) as service:
        receipt = await service.send(21)
        run = await service.finished(receipt.runs[0])
        assert (run.state, run.result, run.attempts) == (RunState.SUCCEEDED, b"42", 1)


async def test_a_redelivery_makes_no_second_run(tmp_path: Path) -> None:
    @flow
    async def note(event: Event) -> None: ...

    async with running(tmp_path, [note]) as service:
        first = await service.send({"n": 1}, event_id="a")
        again = await service.send({"n": 1}, event_id="a")
        other = await service.send({"n": 2}, event_id="a")
        assert again.duplicate
        assert again.runs == first.runs
        assert other.conflict
        assert len(await service.all_finished()) == 1


async def test_runs_start_in_arrival_order_and_never_above_the_limit(tmp_path: Path) -> None:
    started: list[int] = []
    at_once = most = 0

    @flow(concurrency=3)
    async def work(event: Event) -> None:
        nonlocal at_once, most
        started.append(event.data)
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1

    count = WINDOW * 3
    async with running(tmp_path, [work]) as service:
        inside.keep_only_windows(service.process)
        async with asyncio.TaskGroup() as tasks:
            for number in range(count):
                tasks.create_task(service.send(number))
        await service.all_finished()
    assert started == list(range(count))
    assert most <= 3


async def test_a_key_limit_lets_other_keys_pass(tmp_path: Path) -> None:
    at_once: Counter[str] = Counter()
    most: Counter[str] = Counter()

    @flow(concurrency=limit(2, per=lambda event: event.data["customer"]))
    async def bill(event: Event) -> None:
        customer = event.data["customer"]
        at_once[customer] += 1
        most[customer] = max(most[customer], at_once[customer])
        await asyncio.sleep(0.001)
        at_once[customer] -= 1

    async with running(tmp_path, [bill]) as service:
        for number in range(60):
            await service.send({"customer": "big" if number % 3 else f"small{number}"})
        runs = await service.all_finished()
    assert len(runs) == 60
    assert max(most.values()) == 2


async def test_runs_of_one_key_go_one_after_the_other_in_order(tmp_path: Path) -> None:
    seen: dict[str, list[int]] = {}
    busy: Counter[str] = Counter()

    @flow(ordered_by=lambda event: event.data["key"], retry=retry(2, delay="1ms"))
    async def apply(event: Event) -> None:
        key, number = event.data["key"], event.data["number"]
        try:
            busy[key] += 1
            assert busy[key] == 1
            await asyncio.sleep(0.0005)
            if number % 7 == 3 and number not in seen.get("failed", []):
                seen.setdefault("failed", []).append(number)
                raise ValueError("not now")
            seen.setdefault(key, []).append(number)
        finally:
            busy[key] -= 1

    async with running(tmp_path, [apply], concurrency=8) as service:
        inside.keep_only_windows(service.process)
        async with asyncio.TaskGroup() as tasks:
            for number in range(WINDOW * 2):
                key = "hot" if number % 2 else f"cold{number % 5}"
                tasks.create_task(service.send({"key": key, "number": number}))
        runs = await service.all_finished()
    assert {run.state for run in runs} == {RunState.SUCCEEDED}
    for key, numbers in seen.items():
        if key != "failed":
            assert numbers == sorted(numbers), key


async def test_a_retry_waits_without_a_slot_and_is_due_after_a_restart(tmp_path: Path) -> None:
    tries: list[int] = []

    @flow(concurrency=1, retry=retry(3, delay="300ms", jitter=False, factor=1))
    async def flaky(event: Event) -> str:
        tries.append(event.data)
        if event.data == 1 and tries.count(1) < 3:
            raise ConnectionError("down")
        return "up"

    async with running(tmp_path, [flaky]) as service:
        await service.send(1)
        other = await service.send(2)
        assert (await service.finished(other.runs[0])).state is RunState.SUCCEEDED

        async def waits() -> bool:
            return service.process.journal.counts()[0].get("retrying") == 1

        await eventually(waits)
    async with running(tmp_path, [flaky]) as service:
        runs = await service.all_finished()
        assert [(run.state, run.attempts) for run in runs] == [
            (RunState.SUCCEEDED, 3),
            (RunState.SUCCEEDED, 1),
        ]


async def test_each_way_an_attempt_can_end(tmp_path: Path) -> None:
    @flow(retry=retry(5))
    async def ends(event: Event) -> Any:
        match event.data:
            case "skip":
                raise Skip("nothing to do")
            case "fail":
                raise Fail("never")
            case "exit":
                raise SystemExit(3)
            case "keep":
                return {1, 2}
        return event.data

    @flow(timeout="20ms")
    async def slow() -> None:
        await asyncio.Event().wait()

    async with running(tmp_path, [ends]) as service:
        states = {}
        for word in ("skip", "fail", "ok"):
            receipt = await service.send(word)
            states[word] = await service.finished(receipt.runs[0])
        assert (states["skip"].state, states["skip"].reason) == (
            RunState.SKIPPED,
            "nothing to do",
        )
        assert states["fail"].state is RunState.FAILED
        assert states["fail"].attempts == 1
        assert states["fail"].dead
        assert states["ok"].result == b'"ok"'
    async with running(tmp_path / "slow", [slow]) as service:
        run = await service.finished((await service.send()).runs[0])
        assert run.state is RunState.FAILED
        assert run.error is not None
        assert run.error.message == "flow 'slow' did not end within its timeout of 0.02s"


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
async def test_an_exit_in_a_flow_fails_the_run_not_the_service(
    tmp_path: Path, kind: type[BaseException]
) -> None:
    async def leave(event: Event) -> None:
        raise kind(event.data)

    @task
    async def leaving() -> None:
        raise kind("from a task")

    @task
    def leaving_thread() -> None:
        raise kind("from a thread")

    @flow
    def threaded(event: Event) -> None:
        raise kind(event.data)

    @flow
    async def direct(event: Event) -> None:
        await leave(event)

    @flow
    async def stepping() -> None:
        await leaving()

    @flow
    async def gathering(event: Event) -> None:
        await gather(leave(event), asyncio.sleep(0))

    @flow
    async def gathering_steps() -> None:
        await gather(leaving(), leaving_thread.run())

    flows: list[Flow[..., Any]] = [threaded, direct, stepping, gathering, gathering_steps]
    async with running(tmp_path, flows) as service:
        receipt = await service.send("3")
        for run_id in receipt.runs:
            run = await service.finished(run_id)
            assert run.error is not None
            assert (run.dead, run.error.type) == (True, kind.__name__), run
            trace = run.error.traceback or ""
            assert f"{__file__}" in trace
            assert "service/pools" not in trace


async def test_a_flow_that_cancels_itself_fails_and_is_recorded(tmp_path: Path) -> None:
    def cancel_self() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    @flow
    async def waits() -> None:
        cancel_self()
        await asyncio.sleep(60)

    @flow
    async def returns() -> int:
        cancel_self()
        cancel_self()
        return 1

    @flow
    async def raises() -> None:
        cancel_self()
        raise ValueError("no")

    async with running(tmp_path, [waits, returns, raises]) as service:
        for run_id in (await service.send()).runs:
            run = await service.finished(run_id)
            kind = None if run.error is None else run.error.type
            assert (run.flow, kind) in {
                ("waits", "CancelledError"), ("returns", None), ("raises", "ValueError"),
            }  # fmt: skip
        again = await service.send()  # and later events are served
        assert len([await service.finished(run_id) for run_id in again.runs]) == 3


class Hostile(Exception):
    """An error whose own code is broken."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    @property
    def retry_after(self) -> float:
        raise RuntimeError("no number")


async def test_an_error_that_cannot_be_read_fails_its_run_alone(tmp_path: Path) -> None:
    def ask(event: Event) -> bool:
        raise Hostile

    @task
    async def step() -> None:
        raise Hostile

    @flow(retry=retry(1, delay="1ms"))
    async def direct() -> None:
        raise Hostile

    @flow
    async def stepping() -> None:
        await step()

    @flow
    async def grouped() -> None:
        async with asyncio.TaskGroup():
            raise Hostile

    @flow(when=ask)
    async def filtered() -> None: ...

    @flow
    async def undone() -> None:
        current().on_undo(step)
        raise ValueError("undo")

    async with running(tmp_path, [direct, stepping, grouped, filtered, undone]) as service:
        for run_id in (await service.send()).runs:
            run = await service.finished(run_id)
            assert run.dead, run
            if run.flow != "undone":
                assert run.error is not None
                assert "its message cannot be read: RuntimeError" in run.error.message


async def test_events_and_runs_leave_no_reference_cycles(tmp_path: Path) -> None:
    @task
    async def step(number: int) -> int:
        return number

    @flow
    async def steps(event: Event) -> int:
        return sum(await gather(step(1), step(2)))

    async with running(tmp_path, [steps]) as service:
        for _ in range(2):  # the first round fills the caches
            gc.collect()
            gc.disable()
            try:
                for number in range(50):
                    await service.send(number)
                await service.all_finished()
                left = gc.collect()
            finally:
                gc.enable()
        assert left < 50, "every run leaves garbage that only the cycle collector finds"
