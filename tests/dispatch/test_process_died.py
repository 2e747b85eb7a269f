"""A run during which the process kept dying, in the service that starts again.

Deaths are simulated in the journal here; `tests/faults/test_process_death.py` has real ones.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.journal_contract import NOW, claim_all, make_event, make_run, put
from tests.support.running import Running, eventually, running
from turnout import Event, RunError, current, flow, task
from turnout.service.app.process import ManualTrigger
from turnout.service.app.reload import reload_project
from turnout.service.domain.errors import Refused, StepFailed
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import Run, RunState
from turnout.service.journal.open import open_journal
from turnout.service.journal.records import Filter
from turnout.service.operate.verbs import Cancel, Drop, Pause, ReplayDead, Resume, Retry
from turnout.service.project import Project
from turnout.service.telemetry.metrics import Metrics

done: list[str] = []
stops: dict[str, asyncio.Event] = {}
"""What the functions did; where they stop until the event is set."""


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()
    stops.clear()


async def act(what: str) -> None:
    done.append(what)
    if what in stops:
        await stops[what].wait()


@task
async def give_back(what: str) -> None:
    await act(f"give back {what}")


async def tell(error: RunError, event: Event) -> None:
    await act(f"tell {error.type}")


def make_flow(**more: Any) -> Flow[..., Any]:
    """Return a flow that must not run any more."""

    @flow(name="trip", **({"on_failure": tell} | more))
    async def trip(event: Event) -> None:
        done.append(f"ran {event.id}")

    return trip


async def killed(folder: Path, *, times: int = 4, **run: Any) -> str:
    """Leave a running run of `trip` during which the process died `times` times."""
    journal = await open_journal(
        folder, metrics=Metrics(), max_unfinished_runs=100, min_free_bytes=0
    )
    event = make_event("e1")
    await put(journal, make_run("trip", **run), event=event)
    (item,) = await journal.queued("trip", 0, 1)
    (claimed,) = await claim_all(journal, [item.seq])
    for _ in range(times):
        await journal.rescue(now=NOW)
        (claimed,) = await claim_all(journal, [item.seq])
    await journal.close()
    return claimed.claim.run_id


def is_dead(run: Run, error: str = "process_died") -> bool:
    return (
        run.state is RunState.FAILED
        and run.dead
        and run.error is not None
        and run.error.type == error
    )


async def ended(service: Running, run_id: str) -> Run:
    async def over() -> bool:
        return (await service.run(run_id)).state is RunState.FAILED

    await eventually(over)
    return await service.run(run_id)


@pytest.mark.parametrize("hook", [tell, None])
async def test_its_failure_hook_runs_and_it_is_a_dead_letter(tmp_path: Path, hook: Any) -> None:
    run_id = await killed(tmp_path)
    async with running(tmp_path, [make_flow(on_failure=hook)]) as service:
        run = await ended(service, run_id)
        assert is_dead(run) and (run.crashes, run.attempts) == (5, 1)
        assert done == (["tell process_died"] if hook else [])
        assert service.process.journal.counts() == ({"queued": 0, "running": 0}, {"trip": 1})
        metrics = service.process.metrics.render().decode()
        assert 'turnout_runs_total{flow="trip",outcome="failed"} 1.0' in metrics
        stops["tell process_died"] = asyncio.Event()
        stops["tell process_died"].set()
        again = await service.process.operator.do(Retry(run_id))  # nothing was undone
        assert again.state is RunState.QUEUED
        assert (await service.finished(run_id)).state is RunState.SUCCEEDED
        assert done[-1] == "ran e1"


async def test_it_replays_as_a_new_run(tmp_path: Path) -> None:
    run_id = await killed(tmp_path)
    async with running(tmp_path, [make_flow()]) as service:
        await ended(service, run_id)
        (new,) = await service.process.operator.do(ReplayDead(run_id))
        assert (await service.finished(new)).state is RunState.SUCCEEDED
        assert not (await service.run(run_id)).dead
        assert done == ["tell process_died", "ran e1"]


async def test_without_its_flow_it_is_a_dead_letter_too(tmp_path: Path) -> None:
    run_id = await killed(tmp_path)
    async with running(tmp_path, []) as service:
        assert is_dead(await service.run(run_id))
        assert service.process.journal.counts() == ({"queued": 0, "running": 0}, {"trip": 1})
    async with running(tmp_path, [make_flow()]) as service:
        await service.process.operator.do(Retry(run_id))
        assert (await service.finished(run_id)).state is RunState.SUCCEEDED
    assert done == ["ran e1"]


async def test_a_flow_that_takes_over_ends_it(tmp_path: Path) -> None:
    run_id = await killed(tmp_path)

    @flow(was="trip", on_failure=tell)
    async def journey() -> None: ...

    async with running(tmp_path, [journey]) as service:
        run = await ended(service, run_id)
        assert is_dead(run) and run.flow == "journey"
    assert done == ["tell process_died"]


async def test_a_paused_flow_ends_it_when_it_is_resumed(tmp_path: Path) -> None:
    async with running(tmp_path, [make_flow()]) as service:
        await service.process.operator.do(Pause("trip"))
    run_id = await killed(tmp_path)
    async with running(tmp_path, [make_flow()]) as service:
        assert (await service.run(run_id)).state is RunState.QUEUED
        assert done == []
        await service.process.operator.do(Resume("trip"))
        assert is_dead(await ended(service, run_id))
    assert done == ["tell process_died"]


async def _die(folder: Path, run_id: str) -> None:
    journal = await open_journal(
        folder, metrics=Metrics(), max_unfinished_runs=100, min_free_bytes=0
    )
    run = await journal.run(run_id)
    assert run is not None
    for _ in range(5):
        assert await claim_all(journal, [run.seq])
        await journal.rescue(now=NOW)
    await journal.close()


@pytest.mark.parametrize("on_dead", ["continue", "block"])
async def test_its_key_is_released_after_its_ending_unless_it_blocks(
    tmp_path: Path, on_dead: Any
) -> None:
    run_id = await killed(tmp_path, order_key="k")
    ordered = make_flow(ordered_by=lambda event: "k", on_dead=on_dead)
    stops["tell process_died"] = asyncio.Event()
    async with running(tmp_path, [ordered]) as service:
        behind = (await service.send()).runs[0]

        async def told() -> bool:
            return bool(done)

        await eventually(told)
        assert (await service.run(behind)).state is RunState.QUEUED
        stops["tell process_died"].set()
        await ended(service, run_id)
        if on_dead == "block":
            assert (await service.run(behind)).state is RunState.QUEUED
            await service.process.operator.do(Drop(run_id))
        await service.finished(behind)
        assert done[0] == "tell process_died" and len(done) == 2


async def test_cancelled_during_its_failure_hook(tmp_path: Path) -> None:
    run_id = await killed(tmp_path)
    stops["tell process_died"] = asyncio.Event()
    async with running(tmp_path, [make_flow()]) as service:

        async def told() -> bool:
            return bool(done)

        await eventually(told)
        await service.process.operator.do(Cancel(run_id))
        other = (await service.send()).runs[0]
        await service.finished(other)
        assert (await service.run(run_id)).state is RunState.CANCELLED
        await service.process.operator.do(Retry(run_id))
        await service.finished(run_id)
        assert done[0] == "tell process_died" and done[2:] == ["ran e1"]


async def test_stopped_and_reloaded_during_its_failure_hook(tmp_path: Path) -> None:
    run_id = await killed(tmp_path)
    stops["tell process_died"] = asyncio.Event()

    async def told() -> bool:
        return bool(done)

    async with running(tmp_path, [make_flow()], grace=timedelta(milliseconds=20)) as service:
        await eventually(told)
        await reload_project(service.process, Project.of([]))  # it keeps the code it began with
        assert (await service.run(run_id)).state is RunState.RUNNING
    stops["tell process_died"].set()
    async with running(tmp_path, [make_flow()]) as service:
        run = await ended(service, run_id)
        assert is_dead(run) and run.crashes == 5
    assert done == ["tell process_died"] * 2


@pytest.mark.slow
async def test_its_parent_gets_the_error_and_its_children_are_cancelled(tmp_path: Path) -> None:
    begun = asyncio.Event()

    @flow
    async def below() -> None:
        begun.set()
        await asyncio.Event().wait()

    @flow
    async def middle() -> None:
        current().on_undo(give_back, "middle")
        await below()

    @flow
    async def top() -> str:
        try:
            await middle()
        except StepFailed as error:
            return str(error)
        return "?"

    flows: list[Flow[..., Any]] = [below, middle, top]
    async with running(tmp_path, flows) as service:
        emitter = service.process.emitter(ManualTrigger("hand", "hand"), lambda _event: (top,))
        (receipt,) = await emitter([make_event()])
        await begun.wait()
        (run,) = await service.process.journal.runs(Filter(flow="middle"))
    await _die(tmp_path, run.id)
    async with running(tmp_path, flows) as service:
        result = await service.finished(receipt.runs[0])
        assert b"the process died 5 times while this run ran" in (result.result or b"")
        (child,) = await service.process.journal.runs(Filter(flow="below"))
        assert child.state is RunState.CANCELLED
        with pytest.raises(Refused, match="were undone"):
            await service.process.operator.do(Retry(run.id))
    assert done == ["give back middle"]


async def test_an_isolated_run_of_a_paused_flow_blocks_no_other(tmp_path: Path) -> None:
    journal = await open_journal(
        tmp_path, metrics=Metrics(), max_unfinished_runs=100, min_free_bytes=0
    )
    runs = [make_run(name) for name in ("first", "paused", "third")]
    for run in runs:
        await put(journal, run)
    for _ in range(2):
        await claim_all(journal, [run.seq for run in runs])
        await journal.rescue(now=NOW)
    await journal.close()
    stops["first"] = asyncio.Event()

    @flow
    async def first() -> None:
        await act("first")

    @flow(name="paused")
    async def second() -> None:
        await act("paused")

    @flow
    async def third() -> None:
        await act("third")

    async with running(tmp_path, [first, second, third]) as service:

        async def has_begun() -> bool:
            return done == ["first"]

        await eventually(has_begun)
        await service.process.operator.do(Pause("paused"))
        stops["first"].set()
        await service.finished(runs[2].id)
        await service.process.operator.do(Resume("paused"))
        await service.all_finished()
    assert done == ["first", "third", "paused"]
