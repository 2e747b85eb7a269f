"""Runs whose undo failed: seen, retried, dropped, replayed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.support.running import Running, make_event, running
from turnout import Fail, current, flow, task
from turnout.service.app.process import ManualTrigger
from turnout.service.app.reload import reload_project
from turnout.service.domain.errors import Refused
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import RunState
from turnout.service.domain.units import utc_now
from turnout.service.journal.records import Filter
from turnout.service.journal.sqlite import connection
from turnout.service.operate.verbs import (
    Cancel,
    Drop,
    Replay,
    ReplayDead,
    Retry,
    RetryAll,
    Verb,
)
from turnout.service.project import Project

from .orders_to_undo import (
    act,
    all_well,
    broken,
    dead,
    done,
    ended,
    keys,
    metric,
    order,
    reached,
    stops,
    tell,
)

__all__ = ["all_well"]  # the fixture


@task(pool="process")
def refund_in_process(file: str) -> None:
    if not Path(f"{file}.ok").exists():
        raise OSError("the bank is down")
    Path(file).write_text(current().key())


@task(timeout="50ms")
async def slow_refund(what: str) -> None:
    await act(f"refund {what}")


@asynccontextmanager
async def failed_undo(folder: Path, *which: str) -> AsyncIterator[tuple[Running, str]]:
    """Serve `order`, one run of which has failed and could not be undone."""
    broken.update(f"refund {what}" for what in which)
    async with running(folder, [order]) as service:
        run_id = (await service.send()).runs[0]
        await service.finished(run_id)
        yield service, run_id


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
            patch.delattr("tests.operate.orders_to_undo.refund")
            stops["order"].set()
            run = await service.finished(run_id)
            assert run.undo_failed == tuple(f"~undo[{number}]/refund#1" for number in range(3))
        await service.process.operator.do(Retry(run_id))
        assert (await ended(service, run_id)).undo == "done"
        assert done[-3:] == ["refund c", "refund b", "refund a"]


@pytest.mark.slow
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


async def test_bulk_retry_undoes_backwards_before_it_queues_the_oldest_first(
    tmp_path: Path,
) -> None:
    @flow
    async def fails() -> None:
        raise Fail("no stock")

    def only(flow: Flow[..., Any], _event: Event) -> tuple[Flow[..., Any]]:
        return (flow,)

    broken.add("refund a")
    async with running(tmp_path, [fails, order]) as service:
        runs: list[str] = []
        for each in (fails, order, fails, order):
            emitter = service.process.emitter(ManualTrigger("test", "test"), partial(only, each))
            runs += (await emitter([make_event()]))[0].runs
            await service.finished(runs[-1])
        retried = await service.process.operator.do(RetryAll(Filter()))
        assert [runs.index(run.id) for run in retried] == [3, 1, 0, 2]


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
