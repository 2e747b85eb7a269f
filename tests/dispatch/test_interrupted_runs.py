"""Runs that a stop or an operator interrupts: stopped, cancelled, paused, retried, replayed."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from tests.support import inside
from tests.support.running import Running, eventually, running
from turnout import current, flow, task
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import RunState
from turnout.service.operate.verbs import Cancel, Drop, Pause, ReplayDead, Resume, Retry


async def test_a_stop_hands_back_runs_that_do_not_end_and_spends_no_attempt(tmp_path: Path) -> None:
    started = asyncio.Event()
    block = True

    @flow
    async def patient() -> str:
        started.set()
        if block:
            await asyncio.Event().wait()
        return "done"

    async with running(tmp_path, [patient], grace=timedelta(milliseconds=50)) as service:
        receipt = await service.send()
        await started.wait()
    block = False
    async with running(tmp_path, [patient]) as service:
        run = await service.finished(receipt.runs[0])
        assert (run.state, run.attempts, run.crashes) == (RunState.SUCCEEDED, 1, 0)


async def test_a_request_that_waits_for_a_run_is_answered_when_the_service_stops(
    tmp_path: Path,
) -> None:
    @flow
    async def work() -> None: ...

    async with asyncio.TaskGroup() as tasks:
        async with running(tmp_path, [work]) as service:
            service.process.dispatcher.pause("work")
            receipt = await service.send()
            answer = tasks.create_task(service.emitter.result(receipt, 600))
        async with asyncio.timeout(5):
            assert await answer is None


async def test_a_stop_records_neither_a_finally_nor_the_result_of_a_cancelled_thread(
    tmp_path: Path,
) -> None:
    on_loop, in_thread = asyncio.Event(), threading.Event()
    done: list[str] = []
    block = True

    @task
    def clean_up(flow: str) -> None:
        done.append(f"clean up {flow}")

    @task
    def works() -> str:
        in_thread.set()
        while block and not current().cancelled:
            time.sleep(0.001)
        return "half" if block else "whole"

    @flow
    async def on_the_loop() -> None:
        try:
            on_loop.set()
            if block:
                await asyncio.Event().wait()
        finally:
            await clean_up.run("on_the_loop")

    @flow
    def in_a_thread() -> str:
        try:
            return works()
        finally:
            clean_up("in_a_thread")

    flows: list[Flow[..., Any]] = [on_the_loop, in_a_thread]
    async with running(tmp_path, flows, grace=timedelta(milliseconds=50)) as service:
        receipt = await service.send()
        await on_loop.wait()
        await asyncio.to_thread(in_thread.wait, 10)
    assert done == []
    block = False
    async with running(tmp_path, flows) as service:
        runs = [await service.finished(run_id) for run_id in receipt.runs]
    assert [run.result for run in runs] == [None, b'"whole"']
    assert sorted(done) == ["clean up in_a_thread", "clean up on_the_loop"]


async def test_a_cancelled_run_stops_at_its_next_await(tmp_path: Path) -> None:
    started = asyncio.Event()
    cancelled = asyncio.Event()

    @flow(concurrency=1)
    async def patient(event: Event) -> None:
        started.set()
        if event.data == "wait":
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

    async with running(tmp_path, [patient]) as service:
        first = await service.send("wait")
        await started.wait()
        second = await service.send("wait")  # queued behind it
        third = await service.send("go")
        await service.process.operator.do(Cancel(second.runs[0]))
        await service.process.operator.do(Cancel(first.runs[0]))
        await cancelled.wait()
        assert (await service.finished(third.runs[0])).state is RunState.SUCCEEDED
        for receipt in (first, second):
            assert (await service.run(receipt.runs[0])).state is RunState.CANCELLED


async def waits_for_the_previous_attempt(service: Running, run_id: str) -> bool:
    """Whether the attempt of a run waits for an earlier one to end."""
    return inside.waits_for_previous_attempt(service.process, run_id)


async def test_a_cancelled_run_finishes_its_cleanup_although_it_is_retried(tmp_path: Path) -> None:
    begun, gate = asyncio.Event(), asyncio.Event()
    done: list[str] = []

    @flow
    async def clears_up() -> None:
        if done:
            return
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await gate.wait()
            done.append("cleared")

    async with running(tmp_path, [clears_up]) as service:
        run_id = (await service.send()).runs[0]
        await begun.wait()
        await service.process.operator.do(Cancel(run_id))
        await service.process.operator.do(Retry(run_id))
        await eventually(lambda: waits_for_the_previous_attempt(service, run_id))
        gate.set()
        (run,) = await service.all_finished()
        assert run.state is RunState.SUCCEEDED
    assert done == ["cleared"]


async def test_a_run_retried_before_its_cancelled_attempt_has_ended_begins_after_it(
    tmp_path: Path,
) -> None:
    begun, gate = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    inside: list[int] = []
    seen: list[int] = []

    @flow
    def slow() -> int:
        inside.append(1)
        seen.append(len(inside))
        loop.call_soon_threadsafe(begun.set)
        gate.wait()
        inside.pop()
        return len(seen)

    async with running(tmp_path, [slow]) as service:
        run_id = (await service.send()).runs[0]
        await begun.wait()
        await service.process.operator.do(Cancel(run_id))
        await service.process.operator.do(Retry(run_id))
        await eventually(lambda: waits_for_the_previous_attempt(service, run_id))
        gate.set()
        (run,) = await service.all_finished()
        assert (run.state, run.result) == (RunState.SUCCEEDED, b"2")
    assert seen == [1, 1]


async def test_a_run_cancelled_while_it_records_a_step_ends_alone(tmp_path: Path) -> None:
    begun = asyncio.Event()

    @task
    async def step(number: int) -> int:
        begun.set()
        return number

    @flow
    async def steps(event: Event) -> None:
        number = 0
        while event.data == "many":
            number = await step(number)

    async with running(tmp_path, [steps]) as service:
        for _ in range(20):
            begun.clear()
            receipt = await service.send("many")
            await begun.wait()
            await service.process.journal.cancel(receipt.runs[0], now=service.process.now())
        last = await service.send("none")
        assert (await service.finished(last.runs[0])).state is RunState.SUCCEEDED


async def test_a_paused_flow_takes_events_and_runs_them_when_resumed(tmp_path: Path) -> None:
    @flow
    async def work() -> None: ...

    async with running(tmp_path, [work]) as service:
        await service.process.operator.do(Pause("work"))
        receipt = await service.send()
        assert (await service.run(receipt.runs[0])).state is RunState.QUEUED
    async with running(tmp_path, [work]) as service:  # the pause outlives a restart
        assert (await service.run(receipt.runs[0])).state is RunState.QUEUED
        await service.process.operator.do(Resume("work"))
        assert (await service.finished(receipt.runs[0])).state is RunState.SUCCEEDED


async def test_a_dead_letter_replays_as_a_new_run(tmp_path: Path) -> None:
    fixed = False

    @flow
    async def fragile(event: Event) -> None:
        if not fixed:
            raise ValueError("bug")

    async with running(tmp_path, [fragile]) as service:
        receipt = await service.send({"a": 1})
        dead = await service.finished(receipt.runs[0])
        assert dead.dead
        fixed = True
        replayed = await service.process.operator.do(ReplayDead(dead.id))
        again = await service.finished(replayed[0])
        assert (again.state, again.replay) == (RunState.SUCCEEDED, 1)
        assert not (await service.run(dead.id)).dead


async def test_a_failed_run_retried_by_an_operator_succeeds(tmp_path: Path) -> None:
    fixed = False

    @flow
    async def fragile() -> str:
        if not fixed:
            raise ValueError("bug")
        return "ok"

    async with running(tmp_path, [fragile]) as service:
        receipt = await service.send()
        await service.finished(receipt.runs[0])
        fixed = True
        await service.process.operator.do(Retry(receipt.runs[0]))
        await service.all_finished()
        run = await service.run(receipt.runs[0])
        assert (run.state, run.dead) == (RunState.SUCCEEDED, False)


async def test_blocked_order_keeps_the_key_after_a_dead_head(tmp_path: Path) -> None:
    seen: list[int] = []

    def one(on_dead: Literal["continue", "block"]) -> Any:
        @flow(name=on_dead, ordered_by=lambda event: "k", on_dead=on_dead)
        async def ordered(event: Event) -> None:
            if event.data == 1:
                raise ValueError("dead")
            seen.append(event.data)

        return ordered

    async with running(tmp_path / "go", [one("continue")]) as service:
        await service.send(1)
        await service.finished((await service.send(2)).runs[0])
        assert seen == [2]
    async with running(tmp_path / "block", [one("block")]) as service:
        head = await service.send(1)
        await service.finished(head.runs[0])
        behind = await service.send(2)
        assert (await service.run(behind.runs[0])).state is RunState.QUEUED
        await service.process.operator.do(Drop(head.runs[0]))
        assert (await service.finished(behind.runs[0])).state is RunState.SUCCEEDED
