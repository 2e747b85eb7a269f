"""Runs start once, in order, within their limits, and survive a stop or crash of the process."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.support import inside
from tests.support.running import Running, eventually, make_event, running
from turnout import Fail, Skip, current, flow, gather, limit, retry, sleep, task
from turnout.service.dispatch.memory import WINDOW
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import RunState
from turnout.service.journal.records import Filter, Queued
from turnout.service.operate.verbs import Cancel, Drop, Pause, ReplayDead, Resume, Retry


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
        keep_only_windows(service)
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
        keep_only_windows(service)
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


def keep_only_windows(service: Running) -> None:
    """Leave no memory beyond the window of each queue, as in a large backlog."""
    inside.memory(service.process).left = 0


async def check_memory(service: Running) -> None:
    queue = inside.scheduler(service.process).queue("slow")
    assert inside.window(queue) + queue.blocked.count <= 2 * WINDOW


async def test_a_backlog_stays_in_the_journal(tmp_path: Path) -> None:
    gate = asyncio.Event()

    @flow(concurrency=limit(1, per=lambda event: event.data % 3))
    async def slow(event: Event) -> None:
        await gate.wait()

    async with running(tmp_path, [slow]) as service:
        keep_only_windows(service)
        async with asyncio.TaskGroup() as tasks:
            for number in range(WINDOW * 8):
                tasks.create_task(service.send(number))
        await check_memory(service)
        gate.set()
        await service.all_finished()
        runs = await service.process.journal.runs(Filter(limit=10_000))
        assert len({run.id for run in runs}) == WINDOW * 8


async def test_a_backlog_of_keys_runs_once_and_as_many_at_once_as_a_key_may(
    tmp_path: Path,
) -> None:
    started: Counter[int] = Counter()
    now: Counter[int] = Counter()
    last: dict[int, int] = {}  # the newest run of a key that was not alone

    @flow(concurrency=limit(2, per=lambda event: event.data % 7))
    async def fair(event: Event) -> None:
        key = event.data % 7
        started[event.data] += 1
        now[key] += 1
        if now[key] == 2:
            last[key] = event.data
        await asyncio.sleep(0.001)
        now[key] -= 1

    async with running(tmp_path, [fair]) as service:
        for first in range(0, 3000, 100):
            await service.emitter([make_event(number) for number in range(first, first + 100)])
        await service.all_finished()
    assert started == Counter(range(3000))
    assert min(last.values()) > 2500


async def test_a_run_claimed_while_due_runs_are_read_is_not_queued_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    awake, gate = asyncio.Event(), asyncio.Event()

    @flow(ordered_by=lambda event: "key")
    async def naps(event: Event) -> str:
        await sleep("20ms")
        awake.set()
        await gate.wait()
        await sleep("20ms")
        return "rested"

    async with running(tmp_path, [naps]) as service:
        read = service.process.journal.due
        before: list[list[Queued]] = []

        async def read_slowly(at: datetime, limit: int) -> list[Queued]:
            if before:  # a later read that still answers as of before the claim
                await awake.wait()
                asyncio.get_running_loop().call_later(0.02, gate.set)
                return before.pop()
            found = await read(at, limit)
            if found and not awake.is_set():
                before.append(found)
            return found

        monkeypatch.setattr(service.process.journal, "due", read_slowly)
        run = await service.finished((await service.send(1)).runs[0])
        assert run.result == b'"rested"'


async def test_a_flow_whose_runs_arrived_while_every_slot_was_taken_runs(
    tmp_path: Path,
) -> None:
    busy, free = asyncio.Event(), asyncio.Event()

    @flow
    async def holds() -> None:
        busy.set()
        await free.wait()

    @flow
    async def comes_later() -> str:
        return "here"

    async with running(tmp_path, [holds, comes_later], concurrency=1) as service:
        service.emitter.flows = lambda event: (holds,) if event.data == 1 else (comes_later,)
        await service.send(1)
        await busy.wait()
        late = (await service.send(2)).runs[0]
        free.set()
        assert (await service.finished(late)).result == b'"here"'


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
