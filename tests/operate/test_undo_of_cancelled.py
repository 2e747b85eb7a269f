"""Runs that are cancelled, or fail with children, and are undone."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import PATIENCE_SECONDS, Running, eventually, make_event, running
from turnout import Fail, current, flow, gather, retry, sleep, task
from turnout.service.app.process import ManualTrigger
from turnout.service.domain.errors import Refused
from turnout.service.domain.run import RunState
from turnout.service.journal.records import Filter
from turnout.service.operate.verbs import (
    Cancel,
    CancelAll,
    Pause,
    Resume,
    Retry,
)

from .orders_to_undo import (
    act,
    all_well,
    broken,
    charge,
    dead,
    done,
    ended,
    keys,
    metric,
    order,
    reached,
    refund,
    stops,
    tell,
)

__all__ = ["all_well"]  # the fixture


@task(retry=retry(2, delay="1h", jitter=False))
async def patient_refund(what: str) -> None:
    await act(f"refund {what}")


@task(retry=retry(2, delay="1h", jitter=False))
async def patient() -> None:
    raise OSError("later")


async def cancelled_at(service: Running, what: str = "order") -> str:
    """Cancel a run that has come to `what`; return its id."""
    run_id = (await service.send()).runs[0]
    await reached(what)
    await service.process.operator.do(Cancel(run_id, reason="ordered twice", by="ada"))
    return run_id


async def test_cancelling_a_run_stops_it_and_undoes_what_it_did(tmp_path: Path) -> None:
    stops["order"], stops["refund b"] = asyncio.Event(), asyncio.Event()
    async with running(tmp_path, [order]) as service:
        run_id = await cancelled_at(service)
        await reached("refund b")
        run = await service.run(run_id)
        assert (run.state, run.undo) == (RunState.RUNNING, "running")
        with pytest.raises(Refused, match="being undone"):
            await service.process.operator.do(Cancel(run_id))
        stops["refund b"].set()
        run = await ended(service, run_id)
        assert (run.state, run.undo, run.dead) == (RunState.CANCELLED, "done", False)
        assert (run.reason, run.cancelled_by) == ("ordered twice", "ada")
        assert done[4:] == ["refund c", "refund b", "refund a"]  # on_failure hears nothing
        assert run.attempts == 1
        attempts = await service.process.journal.attempts(run.seq)
        assert [attempt.state for attempt in attempts] == [RunState.CANCELLED]
        with pytest.raises(Refused, match="were undone"):
            await service.process.operator.do(Retry(run_id))
        assert b'turnout_runs_total{flow="order",outcome="cancelled"} 1.0' in (
            service.process.metrics.render()
        )


async def test_a_run_that_has_nothing_to_undo_is_cancelled_at_once(tmp_path: Path) -> None:
    stops["charge a"] = asyncio.Event()
    async with running(tmp_path, [order]) as service:
        run_id = await cancelled_at(service, "charge a")
        run = await service.run(run_id)
        assert (run.state, run.undo, run.attempts) == (RunState.CANCELLED, None, 1)
        assert (run.reason, run.cancelled_by) == ("ordered twice", "ada")
        stops["charge a"].set()
        await service.process.operator.do(Retry(run_id))
        run = await ended(service, run_id)
        assert (run.reason, run.cancelled_by, run.undo) == (None, None, "done")


async def test_a_cancelled_run_whose_undo_fails_has_failed_and_is_undone_by_retry(
    tmp_path: Path,
) -> None:
    stops["order"] = asyncio.Event()
    broken.add("refund b")
    async with running(tmp_path, [order]) as service:
        run_id = await cancelled_at(service)
        run = await ended(service, run_id)
        assert (run.state, run.undo, run.dead) == (RunState.FAILED, "failed", True)
        assert run.error is not None and run.error.type == "undo_failed"
        assert run.error.message == (
            "the run was cancelled (ordered twice), and its undo failed at ~undo[1]/refund#1"
        )
        assert done[-1] == "told undo_failed ['~undo[1]/refund#1']"
        broken.clear()
        await service.process.operator.do(Retry(run_id))
        run = await ended(service, run_id)
        assert (run.state, run.undo, run.dead) == (RunState.CANCELLED, "done", False)
        assert (run.reason, run.cancelled_by, run.error) == ("ordered twice", "ada", None)
        assert done[-2:] == ["told undo_failed ['~undo[1]/refund#1']", "refund b"]
        assert await dead(service) == []
        assert (service.process.journal.counts()[1], metric(service)) == ({}, "")


async def test_a_run_that_waits_or_retries_is_undone_when_it_is_cancelled(tmp_path: Path) -> None:
    @flow
    async def sleeps() -> None:
        current().on_undo(refund, await charge("s"))
        await sleep("3h")

    @flow(retry=retry(3, delay="1h", jitter=False))
    async def retries() -> None:
        current().on_undo(refund, await charge("r"))
        raise OSError("later")

    @flow
    async def rests() -> None:
        current().on_undo(refund, await charge("t"))
        await patient()

    for chosen, what in ((sleeps, "s"), (retries, "r"), (rests, "t")):
        async with running(tmp_path / what, [chosen]) as service:
            run_id = (await service.send()).runs[0]

            async def is_suspended(service: Running = service, run_id: str = run_id) -> bool:
                return (await service.run(run_id)).state in (RunState.WAITING, RunState.RETRYING)

            await eventually(is_suspended)
            await service.process.operator.do(Cancel(run_id))
            run = await ended(service, run_id)
            assert (run.state, run.undo) == (RunState.CANCELLED, "done")
            assert run.attempts == 1  # the one that had failed, or was cancelled amid its wait
            assert done[-1] == f"refund {what}"


@pytest.mark.slow
async def test_cancelled_while_queued_it_is_undone_by_the_next_process(tmp_path: Path) -> None:
    stops["order"] = asyncio.Event()
    async with running(tmp_path, [order], grace=timedelta(milliseconds=20)) as service:
        run_id = (await service.send()).runs[0]
        await reached("order")
    async with running(tmp_path, [order]) as service:
        await service.process.operator.do(Pause("order"))
        await reached("order")
    before = len(done)
    async with running(tmp_path, [order]) as service:  # paused: it is cancelled before it goes on
        run = await service.process.operator.do(Cancel(run_id))
        assert (run.state, run.undo) == (RunState.QUEUED, "running")
    async with running(tmp_path, [order]) as service:
        await service.process.operator.do(Resume("order"))
        assert (await ended(service, run_id)).state is RunState.CANCELLED
    assert done[before:] == ["refund c", "refund b", "refund a"]


async def test_a_key_is_held_until_the_run_is_undone(tmp_path: Path) -> None:
    @flow(ordered_by=lambda event: "k")
    async def keyed(data: dict[str, str]) -> None:
        current().on_undo(refund, await charge(data["n"]))
        if data["n"] == "1":
            await act("wait")

    stops["wait"], stops["refund 1"] = asyncio.Event(), asyncio.Event()
    async with running(tmp_path, [keyed]) as service:
        first = (await service.send({"n": "1"})).runs[0]
        await reached("wait")
        behind = [(await service.send({"n": number})).runs[0] for number in "23"]
        await service.process.operator.do(Cancel(first))
        await reached("refund 1")
        assert "charge 2" not in done
        stops["refund 1"].set()
        for run_id in behind:
            await service.finished(run_id)
        assert done[2:] == ["refund 1", "charge 2", "charge 3"]


async def test_a_thread_ends_before_its_run_is_undone(tmp_path: Path) -> None:
    begun, go = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    @flow
    def threaded() -> None:
        current().on_undo(refund, "t")
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result(PATIENCE_SECONDS)
        done.append("the thread ended")

    async with running(tmp_path, [threaded]) as service:
        run_id = (await service.send()).runs[0]
        await begun.wait()
        await service.process.operator.do(Cancel(run_id))
        go.set()
        await ended(service, run_id)
        assert done == ["the thread ended", "refund t"]


async def test_children_are_cancelled_and_undone_before_their_parent(tmp_path: Path) -> None:
    @flow
    async def below(what: str) -> None:
        current().on_undo(refund, await charge(what))
        await act(f"hold {what}")

    @flow
    async def above() -> None:
        current().on_undo(refund, await charge("p"))
        await gather(below("x"), below("y"))

    for what in ("hold x", "hold y", "refund x"):
        stops[what] = asyncio.Event()
    async with running(tmp_path, [below, above]) as service:
        emitter = service.process.emitter(ManualTrigger("hand", "hand"), lambda _event: (above,))
        (receipt,) = await emitter([make_event()])
        await reached("hold x")
        await reached("hold y")
        run = await service.process.operator.do(Cancel(receipt.runs[0], reason="wrong", by="ada"))
        assert run.undo == "running"
        await reached("refund y")
        await reached("refund x")
        assert "refund p" not in done
        stops["refund x"].set()
        run = await ended(service, receipt.runs[0])
        assert (run.state, run.undo) == (RunState.CANCELLED, "done")
        assert done[-1] == "refund p"
        children = await service.process.journal.runs(Filter(flow="below"))
        assert [(child.state, child.undo, child.cancelled_by) for child in children] == [
            (RunState.CANCELLED, "done", "ada")
        ] * 2
        assert all(run.id in (child.reason or "") for child in children)
        checks = [problem async for _, problem in service.process.journal.examine()]
        assert checks == [None] * len(checks)


async def test_children_of_a_run_that_fails_are_undone_before_it_is(tmp_path: Path) -> None:
    @flow
    async def below(what: str) -> None:
        current().on_undo(refund, await charge(what))
        await act(f"hold {what}")

    async def breaks() -> None:
        await reached("hold x")
        raise Fail("no stock")

    @flow(on_failure=tell)
    async def above() -> None:
        current().on_undo(refund, await charge("p"))
        await gather(below("x"), breaks())

    for what in ("hold x", "refund x"):
        stops[what] = asyncio.Event()
    async with running(tmp_path, [below, above]) as service:
        emitter = service.process.emitter(ManualTrigger("hand", "hand"), lambda _event: (above,))
        (receipt,) = await emitter([make_event()])
        await reached("refund x")
        run = await service.run(receipt.runs[0])
        assert (run.state, run.undo) == (RunState.WAITING, "running")
        stops["refund x"].set()
        run = await ended(service, receipt.runs[0])
        assert (run.state, run.undo, run.attempts) == (RunState.FAILED, "done", 1)
        assert done[3:] == ["refund x", "refund p", "told failed []"]
        (child,) = await service.process.journal.runs(Filter(flow="below"))
        assert (child.state, child.undo) == (RunState.CANCELLED, "done")
        checks = [problem async for _, problem in service.process.journal.examine()]
        assert checks == [None] * len(checks)


async def test_a_run_whose_undo_rests_long_is_tried_now_by_a_retry(tmp_path: Path) -> None:
    @flow
    async def books() -> None:
        current().on_undo(patient_refund, "x")
        current().on_undo(refund, "y")
        raise Fail("no stock")

    broken.add("refund x")
    async with running(tmp_path, [books]) as service:
        run_id = (await service.send()).runs[0]

        async def rests() -> bool:
            return (await service.run(run_id)).state is RunState.RETRYING

        await eventually(rests)
        assert (await service.run(run_id)).undo == "running"
        with pytest.raises(Refused, match="being undone"):
            await service.process.operator.do(Cancel(run_id))
        broken.clear()
        await service.process.operator.do(Retry(run_id))
        assert (await ended(service, run_id)).undo == "done"
        assert done == ["refund y", "refund x", "refund x"]
        assert len(keys["refund x"]) == 1


async def test_bulk_cancel_undoes_and_leaves_what_is_undone_alone(tmp_path: Path) -> None:
    stops["order"] = asyncio.Event()
    async with running(tmp_path, [order]) as service:
        for _ in range(3):
            await service.send()

        async def all_begun() -> bool:
            return done.count("order") == 3

        await eventually(all_begun)
        which: Any = Filter(flow="order")
        cancelled = await service.process.operator.do(
            CancelAll(which, reason="sale over", by="ada")
        )
        assert len(cancelled) == 3
        assert await service.process.operator.do(CancelAll(which)) == []
        runs = await service.all_finished()
        assert [(run.state, run.reason) for run in runs] == [(RunState.CANCELLED, "sale over")] * 3
        assert sorted(done).count("refund a") == 3
