"""What the steps of a run say about a dependency, on a virtual clock."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from turnout import Fail, Retry, current, dependency, flow, gather, retry, sleep, task
from turnout.service.domain.run import RunState
from turnout.testing import serve

CRM = dependency("crm", open_after="100% of 2", probe="1m", errors=ConnectionError)


class Crm:
    """A system that refuses its first requests."""

    def __init__(self) -> None:
        self.asked = 0
        self.refuses = 0

    def ask(self) -> str:
        self.asked += 1
        if self.asked <= self.refuses:
            raise ConnectionError("refused")
        return "ok"


crm = Crm()


@task(retry=retry(2, delay="1s", jitter=False))
async def quickly() -> str:
    return crm.ask()


@task(retry=retry(9, delay="10m", jitter=False))
async def patiently() -> str:
    return crm.ask()


@task
async def busy() -> str:
    if crm.ask() and crm.asked < 4:
        raise Retry("busy", after="5m", pause="crm")
    return "ok"


@flow(needs=CRM, retry=retry(2, delay="1s", jitter=False))
async def quick() -> str:
    return await quickly()


@flow(needs=CRM)
async def patient() -> str:
    return await patiently()


@flow(needs=CRM)
async def long() -> str:
    await sleep("3d")
    return crm.ask()


@flow(needs=CRM)
async def at_once() -> list[str]:
    return list(await gather(busy(), quickly()))


async def give_back() -> None:
    if crm.ask() and crm.asked < 3:
        raise Retry("busy", after="1s", pause="crm")


@flow(needs=CRM)
async def undone() -> None:
    current().on_undo(give_back)
    raise Fail("no")


def fresh(*, refuses: int = 0) -> None:
    crm.asked, crm.refuses = 0, refuses


def test_a_failed_probe_is_one_try_of_a_step_and_spends_none() -> None:
    fresh(refuses=11)

    async def outage() -> None:
        async with serve(quick) as service:
            result = await service.run(quick)
        # Two attempts of three tries open the breaker; each probe is one try; then a whole attempt.
        assert (result.state, result.result, result.attempts) == (RunState.SUCCEEDED, "ok", 3)
        assert crm.asked == 12
        assert result.took >= timedelta(minutes=6)

    asyncio.run(outage())


def test_a_step_that_backs_off_for_long_is_a_failure_of_its_attempt() -> None:
    fresh(refuses=4)

    async def outage() -> None:
        async with serve(patient) as service:
            result = await service.run(patient)
            (status,) = service.process.dispatcher.breakers.statuses()
            assert status.stored.generation == 7, "opened, probed three times, closed"
        assert (result.result, result.attempts, crm.asked) == ("ok", 1, 5)

    asyncio.run(outage())


def test_a_run_that_waits_says_nothing_about_it() -> None:
    fresh()

    async def wait() -> None:
        async with serve(long) as service:
            assert (await service.run(long)).result == "ok"
            (status,) = service.process.dispatcher.breakers.statuses()
            assert (status.failed, status.counted) == (0, 1)

    asyncio.run(wait())


def test_a_pause_in_one_branch_lets_the_others_keep_what_they_did() -> None:
    fresh()

    async def pause() -> None:
        async with serve(at_once) as service:
            result = await service.run(at_once)
        assert (result.result, result.attempts) == (["ok", "ok"], 1)
        assert result.took >= timedelta(minutes=5)
        assert list(result.steps) and "~pause[0]" not in result.steps

    asyncio.run(pause())


def test_an_undo_is_tried_again_by_its_own_policy() -> None:
    fresh()

    async def undo() -> None:
        async with serve(undone) as service:
            result = await service.run(undone)
        assert (result.state, result.undo) == (RunState.FAILED, "done")
        assert crm.asked == 3

    asyncio.run(undo())
