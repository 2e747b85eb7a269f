"""A service that exits when it is idle, and is started again by a connection or for what is due."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Say
from tests.support.program import Program, turnout, until
from tests.support.running import eventually, make_event, running
from tests.support.socket_unit import listening, started_on_connection
from turnout import (
    Event,
    Pending,
    batch,
    event,
    every,
    flow,
    notify,
    poll,
    sleep,
    task,
)
from turnout.service.app.idle import kept_by
from turnout.service.domain.errors import Overloaded
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import RunState
from turnout.service.domain.units import utc_now
from turnout.service.operate.verbs import Pause, Resume

FIRST_ANSWER_SECONDS = 1.5
"""From no process to the answer of the first request, on a machine with nothing else."""

FLOWS = """
from turnout import cron, flow, webhook

@flow(on=webhook("/hello", verify="none"))
async def hello(data: dict) -> str:
    return data["name"]

@flow(on=cron("0 6 1 1 *", tz="UTC"))
async def yearly() -> None: ...
"""


def program_in(tmp_path: Path, text: str = FLOWS, **env: str) -> Program:
    flows = tmp_path / "flows.py"
    flows.write_text(text)
    return Program(
        flows=flows, data=tmp_path / "data", log=tmp_path / "log",
        env={"TURNOUT_IDLE_EXIT": "2s", **env},
    )  # fmt: skip


# ---------------------------------------------------------------- the real program


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_it_goes_comes_back_and_says_when_it_must(tmp_path: Path, full: bool, say: Say) -> None:
    program = program_in(tmp_path)
    program.spawned = full  # else forked from a process that has imported everything
    with listening() as listener, program:
        program.listener, program.port = listener, listener.getsockname()[1]
        with started_on_connection(program) as starts:
            began = time.monotonic()
            first = program.ask("/hooks/hello", method="POST", body=b'{"name": "a"}', timeout=30)
            assert first is not None and first.status == 202, first
            took = time.monotonic() - began
            say(f"first answer after {took:.2f} s")
            assert took < FIRST_ANSWER_SECONDS or not full
            until(lambda: starts.codes == [0], 20, "an idle service gone")
            program.said("service.idle", 1)
            year = utc_now().year + 1
            wake = turnout("next", "--wake", "--data", program.data)
            assert wake.stdout == f"{year}-01-01 06:00:00 UTC\n"
            shown = turnout("next", "--data", program.data)
            assert "cron:0 6 1 1 *" in shown.stdout and shown.stderr == "", shown
            assert starts.count == 1, "reading started it"

            (run,) = first.json["runs"]
            again = turnout("replay", run, "--data", program.data, timeout=60)
            assert again.returncode == 0, again
            assert starts.count == 2, "a command that acts did not start it"
            assert not (program.data / "next-wake.json").exists()
            until(lambda: starts.codes == [0, 0], 20, "an idle service gone again")
            shown = turnout("runs", "--json", "--data", program.data)
            assert shown.stdout.count('"succeeded"') == 2, shown


@pytest.mark.full
def test_a_command_acts_by_itself_where_nobody_listens_for_an_idle_service(tmp_path: Path) -> None:
    program = program_in(tmp_path)
    with program:
        with listening() as listener:
            program.listener, program.port = listener, listener.getsockname()[1]
            program.start().ready()
            assert program.ended(20) == 0
        paused = turnout("pause", "hello", "--data", program.data)
        assert paused.returncode == 0, paused


@pytest.mark.slow
@pytest.mark.parametrize("inherits", [True, False])
def test_where_it_would_miss_events_it_does_not_start(tmp_path: Path, inherits: bool) -> None:
    text = (
        FLOWS
        + """
from pathlib import Path
from turnout import files

@flow(on=files("inbox/*.csv"))
async def load(path: Path) -> None: ...
"""
    )
    program = program_in(tmp_path, text)
    with listening() as listener, program:
        if inherits:
            program.listener = listener
        program.start()
        assert program.ended(20) == 78
        said = "files:inbox/*.csv has to be watched" if inherits else "needs a socket that stays"
        assert said in program.log_text()


# ---------------------------------------------------------------- what keeps it

held = asyncio.Event()


@flow
async def works() -> None:
    await held.wait()


@flow
async def sleeps(long: str) -> None:
    await sleep(long)


@task
async def look() -> str | Pending:
    return Pending()


@flow
async def polls() -> None:
    await poll(look, every="1d", timeout="30d")


@flow(on=every("30s"))
async def often() -> None: ...


@flow(on=every("1d"))
async def rarely() -> None: ...


@flow(on=batch(event("item"), 10, "2d"))
async def collects(events: list[Event]) -> None: ...


async def test_a_disk_that_is_full_keeps_it(tmp_path: Path) -> None:
    async with running(tmp_path, [works], min_free_bytes=2**60) as service:
        with pytest.raises(Overloaded):
            await service.send()
        assert "no new events are accepted" in str(await kept_by(service.process))


async def test_nothing_keeps_it(tmp_path: Path) -> None:
    async with running(tmp_path, [works]) as service:
        assert await service.process.wanted.kept_by() is None
        assert (await service.process.wanted.next_wake("x")).at is None


async def test_a_run_keeps_it_while_it_runs_and_while_it_could(tmp_path: Path) -> None:
    held.clear()
    async with running(tmp_path, [works], concurrency=1) as service:
        wanted = service.process.wanted
        (first,) = (await service.send()).runs
        await service.until(first, RunState.RUNNING)
        assert await wanted.kept_by() == "a run that is running"
        await service.process.operator.do(Pause("works", lasts=timedelta(hours=3)))
        (second,) = (await service.send()).runs
        held.set()
        await service.finished(first)
        assert await wanted.kept_by() is None, "a paused flow needs no process"
        at = (await wanted.next_wake("x")).at
        assert at is not None
        assert timedelta(hours=2.9) < at - utc_now() < timedelta(hours=3), "the end of the pause"
        await service.process.operator.do(Resume("works"))
        await service.finished(second)


@pytest.mark.parametrize(("long", "kept_by"), [("50s", "a run that is due soon"), ("2h", None)])
async def test_a_run_that_is_due_keeps_it_if_soon(
    tmp_path: Path, long: str, kept_by: str | None
) -> None:
    async with running(tmp_path, [sleeps]) as service:
        (run,) = (await service.send(long)).runs
        await service.until(run, RunState.WAITING)
        assert await service.process.wanted.kept_by() == kept_by
        due_at = (await service.run(run)).due_at
        assert (await service.process.wanted.next_wake("x")).at == due_at


async def test_a_poll_keeps_it_however_late_the_next_look_is(tmp_path: Path) -> None:
    async with running(tmp_path, [polls]) as service:
        await service.send()

        async def is_kept() -> bool:
            return await service.process.wanted.kept_by() == "a run that polls"

        await eventually(is_kept)


@pytest.mark.parametrize(("timer", "kept_by"), [(often, "a timer that ticks soon"), (rarely, None)])
async def test_a_timer_keeps_it_if_it_ticks_soon(
    tmp_path: Path, timer: Flow[..., Any], kept_by: str | None
) -> None:
    async with running(tmp_path, [timer]) as service:
        assert await service.process.wanted.kept_by() == kept_by
        wake = await service.process.wanted.next_wake("x")
        (tick,) = wake.ticks
        assert wake.at == tick.at
        await service.process.operator.do(Pause(timer.name))
        assert await service.process.wanted.kept_by() is None
        assert (await service.process.wanted.next_wake("x")).at is None


async def test_an_open_window_keeps_it(tmp_path: Path) -> None:
    async with running(tmp_path, [collects]) as service:
        sent = replace(make_event({}), type="item", trigger="api")
        (receipt,) = await service.process.api([sent])
        assert receipt.windows
        assert await service.process.wanted.kept_by() == "an open window"


async def test_what_is_expected_of_a_flow_is_in_time_for_the_next_wake(tmp_path: Path) -> None:
    @flow(expect_every="3h", on_failure=notify("https://example.org/x"))
    async def quiet() -> None: ...

    async with running(tmp_path, [quiet]) as service:
        process = service.process

        async def looked() -> bool:
            return process.alerts.next_due_at is not None

        await eventually(looked)
        assert await process.wanted.kept_by() is None
        at = (await process.wanted.next_wake("x")).at
        assert at is not None
        assert timedelta(hours=2.9) < at - utc_now() < timedelta(hours=3.1)
