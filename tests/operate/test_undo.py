"""What an operator sees of an undo that fails, and what a cancel does to a run that did something.

`test_compensation.py` has the compensation itself, attempt by attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.support.running import PATIENCE_SECONDS, Running, eventually, make_event, running
from turnout import Event, Fail, RunError, current, flow, gather, retry, sleep, task
from turnout.service.app.process import ManualTrigger
from turnout.service.app.reload import reload_project
from turnout.service.domain.errors import Refused
from turnout.service.domain.run import Run, RunState
from turnout.service.domain.units import utc_now
from turnout.service.journal.records import Filter
from turnout.service.journal.sqlite import connection
from turnout.service.operate.verbs import (
    Cancel,
    CancelAll,
    Drop,
    Pause,
    Replay,
    ReplayDead,
    Resume,
    Retry,
    RetryAll,
    Verb,
)
from turnout.service.project import Project

done: list[str] = []
keys: dict[str, set[str]] = {}
broken: set[str] = set()
stops: dict[str, asyncio.Event] = {}
"""What was really done, under which keys, what of it fails, and what waits before it is done."""


@pytest.fixture(autouse=True)
def all_well() -> None:
    for each in (done, keys, broken, stops):
        each.clear()


async def act(what: str) -> None:
    keys.setdefault(what, set()).add(current().key())
    done.append(what)
    if what in stops:
        await stops[what].wait()
    if what in broken:
        raise OSError(f"no {what}")


@task
async def charge(what: str) -> str:
    await act(f"charge {what}")
    return what


@task
async def refund(what: str) -> None:
    await act(f"refund {what}")


@task(pool="process")
def refund_in_process(file: str) -> None:
    if not Path(f"{file}.ok").exists():
        raise OSError("the bank is down")
    Path(file).write_text(current().key())


@task(retry=retry(2, delay="1h", jitter=False))
async def patient_refund(what: str) -> None:
    await act(f"refund {what}")


@task(retry=retry(2, delay="1h", jitter=False))
async def patient() -> None:
    raise OSError("later")


@task(timeout="50ms")
async def slow_refund(what: str) -> None:
    await act(f"refund {what}")


def tell(error: RunError, event: Event) -> None:
    done.append(f"told {error.type} {list(error.undo_failed)}")


@flow(on_failure=tell)
async def order() -> None:
    for what in ("a", "b", "c"):
        current().on_undo(refund, await charge(what))
    if "order" in stops:
        await act("order")
    raise Fail("no stock")


@asynccontextmanager
async def failed_undo(folder: Path, *which: str) -> AsyncIterator[tuple[Running, str]]:
    """Serve `order`, one run of which has failed and could not be undone."""
    broken.update(f"refund {what}" for what in which)
    async with running(folder, [order]) as service:
        run_id = (await service.send()).runs[0]
        await service.finished(run_id)
        yield service, run_id


async def dead(service: Running) -> list[str]:
    return [run.id for run in await service.process.journal.runs(Filter(dead=True))]


async def ended(service: Running, run_id: str) -> Run:
    """Wait until a run has ended, also one that had ended before."""

    async def has_ended() -> bool:
        return (await service.run(run_id)).finished_at is not None

    await eventually(has_ended)
    return await service.run(run_id)


async def reached(what: str) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while what not in done:  # noqa: ASYNC110  a fact of a list has no event
            await asyncio.sleep(0.002)


def metric(service: Running) -> str:
    lines = service.process.metrics.render().decode().splitlines()
    return next((line for line in lines if line.startswith("turnout_undo_failed{")), "")


# ---------------------------------------------------------------- an undo that failed


async def test_an_undo_that_fails_is_seen_wherever_runs_are(tmp_path: Path) -> None:
    async with failed_undo(tmp_path, "b") as (service, run_id):
        run = await service.run(run_id)
        assert (run.state, run.undo, run.dead) == (RunState.FAILED, "failed", True)
        assert run.undo_failed == ("~undo[1]/refund#1",)
        assert run.as_dict()["undo_failed"] == ["~undo[1]/refund#1"]
        assert run.error is not None and run.error.message == "no stock"
        assert done[3:] == [
            "refund c", "refund b", "refund a", "told failed ['~undo[1]/refund#1']",
        ]  # fmt: skip
        assert metric(service) == 'turnout_undo_failed{flow="order"} 1.0'


async def test_a_clean_undo_says_so(tmp_path: Path) -> None:
    async with failed_undo(tmp_path) as (service, run_id):
        run = await service.run(run_id)
        assert (run.undo, run.undo_failed, run.dead) == ("done", (), True)
        assert done[-1] == "told failed []"
        assert metric(service) == ""
        with pytest.raises(Refused, match="were undone"):
            await service.process.operator.do(Retry(run_id))


async def test_a_retry_goes_on_with_what_is_not_undone_and_only_that(tmp_path: Path) -> None:
    async with failed_undo(tmp_path, "a", "c") as (service, run_id):
        before = len(done)
        with pytest.raises(Refused, match="not undone yet"):
            await service.process.operator.do(Retry(run_id, "charge"))
        broken.discard("refund c")
        await service.process.operator.do(Retry(run_id))
        run = await ended(service, run_id)
        assert (run.state, run.undo, run.dead) == (RunState.FAILED, "failed", True)
        assert run.undo_failed == ("~undo[0]/refund#1",)
        assert metric(service).endswith(" 1.0")
        broken.clear()
        await service.process.operator.do(Retry(run_id))
        run = await ended(service, run_id)
        assert done[before:] == ["refund c", "refund a", "refund a"]
        assert (run.state, run.undo, run.undo_failed) == (RunState.FAILED, "done", ())
        assert run.error is not None and run.error.message == "no stock"
        assert await dead(service) == []
        assert service.process.journal.counts()[1] == {}
        assert metric(service) == ""
        assert {what: len(used) for what, used in keys.items()} == dict.fromkeys(keys, 1)


async def test_it_stays_a_dead_letter_while_it_is_undone_again(tmp_path: Path) -> None:
    async with failed_undo(tmp_path, "a") as (service, run_id):
        broken.clear()
        done.clear()
        stops["refund a"] = asyncio.Event()
        operator = service.process.operator
        await operator.do(Retry(run_id))
        await reached("refund a")
        assert await dead(service) == [run_id]
        assert (await service.run(run_id)).undo == "running"
        verbs: tuple[Verb[Any], ...] = (
            Cancel(run_id),
            Drop(run_id),
            Retry(run_id),
            ReplayDead(run_id),
        )
        for verb in verbs:
            with pytest.raises(Refused):
                await operator.do(verb)
        stops["refund a"].set()
        assert (await ended(service, run_id)).undo == "done"
        assert await dead(service) == []


async def test_handed_back_in_the_middle_it_is_a_dead_letter_still(tmp_path: Path) -> None:
    async with failed_undo(tmp_path, "a") as (service, run_id):
        pass
    stops["refund a"] = asyncio.Event()
    done.clear()
    async with running(tmp_path, [order], grace=timedelta(milliseconds=20)) as service:
        await service.process.operator.do(Retry(run_id))
        await reached("refund a")
    broken.clear()
    async with running(tmp_path, []) as service:
        # Nobody serves the flow: what was to be done is left, and said.
        run = await service.run(run_id)
        assert (run.state, run.undo, run.dead) == (RunState.FAILED, "failed", True)
        assert metric(service).endswith(" 1.0")
        assert service.process.journal.counts()[1] == {"order": 1}
    stops["refund a"].set()
    async with running(tmp_path, [order]) as service:
        await service.process.operator.do(Retry(run_id))
        assert (await ended(service, run_id)).undo == "done"
        assert await dead(service) == []


async def test_dropped_it_is_counted_no_more_and_can_still_be_undone(tmp_path: Path) -> None:
    async with failed_undo(tmp_path, "a") as (service, run_id):
        await service.process.operator.do(Drop(run_id))
        assert await dead(service) == []
        assert metric(service) == ""
        broken.clear()
        await service.process.operator.do(Retry(run_id))
        run = await ended(service, run_id)
        assert (run.undo, run.dead) == ("done", False)
        assert service.process.journal.counts()[1] == {}


async def test_a_replay_beside_what_is_not_undone_must_be_asked_for(tmp_path: Path) -> None:
    async with failed_undo(tmp_path, "a") as (service, run_id):
        event_id = (await service.run(run_id)).event_id
        operator = service.process.operator
        with pytest.raises(Refused, match=r"not undone.*not_undone"):
            await operator.do(Replay(event_id))
        with pytest.raises(Refused, match="not undone"):
            await operator.do(ReplayDead(run_id))
        (again,) = await operator.do(ReplayDead(run_id, not_undone=True))
        await service.finished(again)
        assert sorted(await dead(service)) == sorted([run_id, again])  # the first is open still
        await operator.do(Replay(event_id, not_undone=True))


async def test_it_is_not_pruned_before_it_is_dropped(tmp_path: Path) -> None:
    async with failed_undo(tmp_path, "a") as (service, run_id):
        later = utc_now() + timedelta(days=365)

        async def prune() -> None:
            await service.process.journal.prune(
                finished_before=later, failed_before=later, unmatched_before=later,
                dedupe_before=later, now=later, limit=100,
            )  # fmt: skip
            await service.process.journal.prune_oldest(100)

        await prune()
        assert await dead(service) == [run_id]
        await service.process.operator.do(Drop(run_id))
        await prune()
        assert await service.process.journal.run(run_id) is None


async def test_one_whose_code_is_gone_goes_on_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops["order"] = asyncio.Event()
    async with running(tmp_path, [order]) as service:
        run_id = (await service.send()).runs[0]
        await reached("order")
        with monkeypatch.context() as patch:
            patch.delattr("tests.operate.test_undo.refund")
            stops["order"].set()
            run = await service.finished(run_id)
            assert run.undo_failed == tuple(f"~undo[{number}]/refund#1" for number in range(3))
        await service.process.operator.do(Retry(run_id))
        assert (await ended(service, run_id)).undo == "done"
        assert done[-3:] == ["refund c", "refund b", "refund a"]


async def test_in_a_worker_process_it_fails_and_goes_on_the_same(tmp_path: Path) -> None:
    @flow
    async def books(data: dict[str, str]) -> None:
        current().on_undo(refund_in_process, data["file"])
        raise Fail("no stock")

    file = tmp_path / "refunded"
    async with running(tmp_path / "data", [books]) as service:
        run_id = (await service.send({"file": str(file)})).runs[0]
        assert (await service.finished(run_id)).undo_failed == ("~undo[0]/refund_in_process#1",)
        await asyncio.to_thread(Path(f"{file}.ok").touch)
        await service.process.operator.do(Retry(run_id))
        assert (await ended(service, run_id)).undo == "done"
        assert len(await asyncio.to_thread(file.read_text)) == 32


async def test_one_that_times_out_has_failed(tmp_path: Path) -> None:
    @flow
    async def books() -> None:
        current().on_undo(slow_refund, "x")
        raise Fail("no stock")

    stops["refund x"] = asyncio.Event()
    async with running(tmp_path, [books]) as service:
        run_id = (await service.send()).runs[0]
        assert (await service.finished(run_id)).undo == "failed"
        stops["refund x"].set()
        await service.process.operator.do(Retry(run_id))
        assert (await ended(service, run_id)).undo == "done"


async def test_bulk_retry_finishes_undos_too(tmp_path: Path) -> None:
    async with failed_undo(tmp_path, "a") as (service, run_id):
        broken.clear()
        (retried,) = await service.process.operator.do(RetryAll(Filter(flow="order")))
        assert retried.id == run_id
        assert (await ended(service, run_id)).undo == "done"


async def test_dead_letters_that_are_not_undone_go_along_with_a_renamed_flow(
    tmp_path: Path,
) -> None:
    async with failed_undo(tmp_path, "a") as (service, run_id):
        renamed = flow(name="sale", was="order", on_failure=tell)(order.function)
        await reload_project(service.process, Project.of([renamed]))
        assert metric(service) == 'turnout_undo_failed{flow="sale"} 1.0'
        broken.clear()
        await service.process.operator.do(Retry(run_id))
        assert (await ended(service, run_id)).undo == "done"
        assert metric(service) == ""


# ---------------------------------------------------------------- a cancel


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


async def test_an_undo_that_failed_under_an_older_turnout_can_be_finished(tmp_path: Path) -> None:
    """Its journal did not say how an undo went: only the steps did."""
    async with failed_undo(tmp_path, "a") as (service, run_id):
        failed = (await service.run(run_id)).seq
    with closing(apsw.Connection(str(tmp_path / "journal" / "journal.db"))) as journal:
        journal.execute("UPDATE runs SET undo = NULL, dead = 0")  # as after a `dead replay` there
        migration = (Path(connection.__file__).parent / "migrations/0006_undo.sql").read_text()
        journal.execute(migration[migration.index("UPDATE runs") :])
    broken.clear()
    async with running(tmp_path, [order]) as service:
        run = await service.run(run_id)
        assert (run.seq, run.undo, run.undo_failed) == (failed, "failed", ("~undo[0]/refund#1",))
        await service.process.operator.do(Retry(run_id))
        assert (await ended(service, run_id)).undo == "done"
        assert done[-1] == "refund a"
