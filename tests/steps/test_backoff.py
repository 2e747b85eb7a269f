"""A step that waits long for its next try gives the run's slot back, and stops nothing."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.program import Program, turnout, until
from tests.support.running import Running, eventually, running
from turnout import (
    Fail,
    Retry,
    current,
    flow,
    gather,
    retry,
    sleep,
    task,
    wait_for,
    webhook,
)
from turnout.service.domain.errors import Refused
from turnout.service.domain.event import Event
from turnout.service.domain.run import Run, RunState
from turnout.service.domain.units import utc_now
from turnout.service.operate import verbs
from turnout.service.steps import backoff

LONG = retry(3, delay="1h", factor=1, jitter=False)
tries: dict[str, int] = {}


@pytest.fixture(autouse=True)
def no_tries() -> None:
    tries.clear()


def fail_once(name: str) -> str:
    tries[name] = tries.get(name, 0) + 1
    if tries[name] == 1:
        raise OSError("not now")
    return name


@task(retry=LONG)
async def on_loop(name: str) -> str:
    return fail_once(name)


@task(retry=LONG)
def in_thread(name: str) -> str:
    return fail_once(name)


@task(retry=LONG)
def undone(name: str) -> str:
    return fail_once(name)


@flow
async def one() -> str:
    return await on_loop("a")


@flow
def threaded() -> str:
    return in_thread("a")


@flow
async def branches() -> list[str]:
    return list(await gather(on_loop("a"), in_thread.run("b"), on_loop("c")))


@flow
async def nested() -> list[str]:
    async def inner() -> list[str]:
        return list(await gather(on_loop("a"), on_loop("b")))

    first, last = await gather(inner(), on_loop("c"))
    return [*first, last]


@flow
async def mapped() -> list[str]:
    return await on_loop.map(["a", "b", "c"], limit=2)


@flow
def mapped_in_threads() -> list[str]:
    return in_thread.map(["a", "b", "c"], limit=2)


@flow
async def undoing() -> None:
    current().on_undo(undone, "a")
    raise Fail("for good")


@task(retry=LONG)
async def tell() -> None:
    fail_once("tell")


@flow(on_failure=tell)
async def telling() -> None:
    raise Fail("for good")


async def state_of(service: Running, run_id: str, wanted: RunState) -> Run:
    async def reached() -> bool:
        return (await service.run(run_id)).state is wanted

    await eventually(reached)
    return await service.run(run_id)


FLOWS = [one, threaded, branches, nested, mapped, mapped_in_threads, undoing, telling]


@pytest.mark.parametrize("chosen", FLOWS, ids=lambda chosen: chosen.name)
async def test_its_slot_is_free_meanwhile_and_an_operator_may_try_at_once(
    tmp_path: Path, chosen: Any
) -> None:
    began = utc_now()

    @flow
    async def other() -> str:
        return "in time"

    async with running(tmp_path, [chosen, other], concurrency=1) as service:
        (run_id, other_id) = (await service.send()).runs
        run = await state_of(service, run_id, RunState.RETRYING)
        assert (await service.finished(other_id)).state is RunState.SUCCEEDED
        assert not any(service.process.dispatcher.held_slots().values())
        assert run.due_at is not None
        assert timedelta(minutes=59) < run.due_at - began < timedelta(minutes=61)
        assert run.as_dict()["due_at"] is not None
        assert run.error is not None and run.error.message == "not now"
        again = await service.process.operator.do(verbs.Retry(run_id))
        assert again.state is RunState.RETRYING
        ended = await service.finished(run_id)
    assert ended.attempts == 1
    assert set(tries.values()) == {2}
    if chosen in (undoing, telling):
        assert (ended.state, ended.undo == "done") == (RunState.FAILED, chosen is undoing)
    else:
        assert ended.state is RunState.SUCCEEDED


async def test_a_try_begins_on_time_beside_a_branch_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "LONGEST_HELD_SECONDS", 0.0)
    tried = asyncio.Event()

    @task(retry=retry(1, delay="30ms", jitter=False))
    async def soon() -> None:
        fail_once("soon")
        tried.set()

    @task
    async def works() -> None:
        await tried.wait()  # for ever, if the try waits for this

    @flow
    async def both() -> None:
        await gather(soon(), works())

    async with running(tmp_path, [both]) as service:
        receipt = await service.send()
        assert (await service.finished(receipt.runs[0])).state is RunState.SUCCEEDED


async def test_it_keeps_its_ordering_key_and_a_stop_does_not_wait_for_it(tmp_path: Path) -> None:
    @flow(ordered_by=lambda event: "all")
    async def ordered(data: int) -> str:
        return await on_loop(f"{data}")

    async with running(tmp_path, [ordered], grace=timedelta(seconds=60)) as service:
        first = (await service.send(1)).runs[0]
        second = (await service.send(2)).runs[0]
        await state_of(service, first, RunState.RETRYING)
        assert (await service.run(second)).state is RunState.QUEUED
        began = time.monotonic()
    assert time.monotonic() - began < 5
    async with running(tmp_path, [ordered]) as service:
        assert (await service.run(first)).state is RunState.RETRYING
        await service.process.operator.do(verbs.Retry(first))
        assert (await service.finished(first)).state is RunState.SUCCEEDED
        await state_of(service, second, RunState.RETRYING)


async def test_what_waits_for_something_else_cannot_be_tried_now(tmp_path: Path) -> None:
    paid = webhook("/paid", verify="none")

    @flow
    async def naps() -> None:
        await sleep("1h")

    @flow(awaits=paid)
    async def waits_and_retries() -> None:
        await gather(wait_for(paid), on_loop("a"))

    @flow(retry=LONG)
    async def again() -> None:
        if current().attempt == 1:
            raise Retry(reason="later")

    async with running(tmp_path, [naps, waits_and_retries, again]) as service:
        nap, both, retrying = (await service.send()).runs
        await state_of(service, nap, RunState.WAITING)
        with pytest.raises(Refused, match="is waiting; only a finished run can be retried, or one"):
            await service.process.operator.do(verbs.Retry(nap))
        await state_of(service, both, RunState.WAITING)
        await service.process.operator.do(verbs.Retry(both))
        await eventually(lambda: tried_twice())
        await state_of(service, retrying, RunState.RETRYING)
        with pytest.raises(Refused, match="from a step"):
            await service.process.operator.do(verbs.Retry(retrying, "a"))
        await service.process.operator.do(verbs.Retry(retrying))
        assert (await service.finished(retrying)).state is RunState.SUCCEEDED


async def tried_twice() -> bool:
    return tries.get("a") == 2


async def test_a_short_wait_holds_the_slot(tmp_path: Path) -> None:
    @task(retry=retry(1, delay="50ms", jitter=False))
    async def soon() -> None:
        fail_once("soon")

    @flow
    async def short(event: Event) -> None:
        await soon()

    async with running(tmp_path, [short]) as service:
        run = await service.finished((await service.send()).runs[0])
        history = await service.process.journal.attempts(run.seq)
    assert run.state is RunState.SUCCEEDED
    (attempt,) = history  # stored for its log, which tells of the retry
    assert attempt.log is not None and attempt.log.count(b"step.retried") == 1
    assert backoff.LONGEST_HELD_SECONDS == 5


SERVED = """
from turnout import event, flow, retry, task

@task(retry=retry(5, delay="20s", jitter=False))
def charge() -> None:
    raise OSError("no answer")

@flow(on=event("go"))
def order() -> None:
    charge()
"""


@pytest.mark.slow
def test_a_served_program_says_until_when_and_stops_at_once(tmp_path: Path) -> None:
    flows, data, file = tmp_path / "flows.py", tmp_path / "data", tmp_path / "event.json"
    flows.write_text(SERVED)
    file.write_text('{"specversion": "1.0", "id": "1", "source": "/t", "type": "go"}')
    program = Program(flows=flows, data=data, log=tmp_path / "log")
    with program.start():
        program.ready()
        turnout("emit", file, "--data", data)
        until(lambda: program.metrics("turnout_runs").get('state="retrying"'), 10, "it waits")
        assert not sum(program.metrics("turnout_slots").values())
        (line,) = turnout("runs", "--json", "--data", data).stdout.splitlines()
        run = json.loads(line)
        assert run["state"] == "retrying" and run["due_at"]
        assert "for its next try" in turnout("runs", "--data", data).stdout
        shown = turnout("show", run["id"], "--data", data).stdout
        assert "retrying" in shown and "due" in shown
        began = time.monotonic()
        assert program.stop() == 0
        assert time.monotonic() - began < 5
