"""A timeout around what outlasts the attempt is refused by name; one around tasks is honoured."""

from __future__ import annotations

import asyncio
from asyncio import timeout as limit
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.support.running import running
from turnout import approval, flow, gather, retry, sleep, task, wait_for, webhook
from turnout.service.domain.run import RunState

paid = webhook("/paid", verify="none")
LONG = retry(3, delay="1h", jitter=False)


@flow
async def child() -> str:
    return "grown"


@task(retry=LONG)
async def fails() -> None:
    raise OSError("not now")


@task
async def quick() -> str:
    return "done"


@flow
async def slept() -> None:
    async with asyncio.timeout(0.5):
        await sleep("2s")


@flow(awaits=paid)
async def waited() -> None:
    async with limit(0.5):
        await wait_for(paid)


@flow
async def called() -> None:
    bound = asyncio.timeout(60)
    async with bound:
        await child()


@flow
async def asked() -> None:
    with anyio.fail_after(5):
        await approval("ops")


@flow
async def moved_on() -> None:
    with anyio.move_on_after(5):
        await sleep("2s")


@flow
async def gathered() -> None:
    async with asyncio.timeout_at(asyncio.get_running_loop().time() + 60):
        await gather(quick(), sleep("2s"))


@flow
async def mapped() -> None:
    async with asyncio.timeout(60), asyncio.Lock():
        await child.map([])
        await helped()


async def helped() -> None:
    if True:
        await sleep("2s")


@flow
async def rescheduled() -> None:
    async with asyncio.timeout(None) as bound:
        bound.reschedule(asyncio.get_running_loop().time() + 60)
        await sleep("2s")


REFUSED = [slept, waited, called, asked, moved_on, gathered, mapped, rescheduled]


@pytest.mark.parametrize("chosen", REFUSED, ids=lambda chosen: chosen.name)
async def test_a_wait_inside_a_timeout_is_refused_by_name(tmp_path: Path, chosen: Any) -> None:
    async with running(tmp_path, [child, chosen]) as service:
        service.emitter.flows = lambda _event: (chosen,)
        run = await service.finished((await service.send()).runs[0])
    assert run.error is not None
    assert run.error.type == "MisplacedTask"
    line = chosen.function.__code__.co_firstlineno
    assert f"is inside a timeout ({__file__}:" in run.error.message
    assert line < int(run.error.message.partition(f"{__file__}:")[2].partition(")")[0]) < line + 5


@flow
async def after() -> str:
    async with asyncio.timeout(5):
        await quick()

    async def nothing() -> None:
        async with asyncio.timeout(5):
            await quick()

    await sleep("10ms")
    await nothing()
    with suppress(OSError):
        return await child()
    return ""


async def test_a_wait_behind_a_timeout_or_beside_one_is_none_of_its(tmp_path: Path) -> None:
    async with running(tmp_path, [child, after]) as service:
        service.emitter.flows = lambda _event: (after,)
        async with asyncio.timeout(20):
            run = await service.finished((await service.send()).runs[0])
    assert (run.state, run.result) == (RunState.SUCCEEDED, b'"grown"')


NEVER = None


@flow
async def unbounded() -> str:
    async with asyncio.timeout(None):
        await sleep("10ms")
    async with limit(NEVER), asyncio.timeout(5) as bound:
        bound.reschedule(None)
        await sleep("10ms")
    with anyio.move_on_after(delay=NEVER):
        await sleep("10ms")
    return "slept"


async def test_a_wait_inside_a_timeout_that_never_ends_is_allowed(tmp_path: Path) -> None:
    async with running(tmp_path, [unbounded]) as service:
        run = await service.finished((await service.send()).runs[0])
    assert (run.error, run.result) == (None, b'"slept"')


@flow
async def bounded() -> str:
    try:
        async with asyncio.timeout(0.2):
            await fails()
    except TimeoutError:
        return "in time"
    return "too late"


async def test_a_timeout_around_a_task_that_waits_for_its_next_try_is_kept(tmp_path: Path) -> None:
    async with running(tmp_path, [bounded]) as service:
        run = await service.finished((await service.send()).runs[0])
    assert run.result == b'"in time"'
