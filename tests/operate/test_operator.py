"""An operator's verbs do what they say, say why they do not, and leave the rest alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.running import Running, make_event, running
from turnout import event, every, files, flow, sleep, webhook
from turnout.service.domain.errors import InvalidData, NotFound, Overloaded, Refused
from turnout.service.domain.event import Event
from turnout.service.domain.run import RunState
from turnout.service.domain.units import utc_now
from turnout.service.journal.records import Filter
from turnout.service.operate.verbs import (
    Cancel,
    CancelAll,
    Emit,
    Fire,
    Pause,
    Replay,
    ReplayDead,
    Resume,
    Retry,
    RetryAll,
)


@flow
async def odd(event: Event) -> None:
    if event.data % 2:
        raise ValueError("odd")


async def test_bulk_retry_takes_only_what_failed(tmp_path: Path) -> None:
    async with running(tmp_path, [odd]) as service:
        for number in range(6):
            await service.send(number)
        await service.all_finished()
        retried = await service.process.operator.do(RetryAll(Filter(flow="odd")))
        assert len(retried) == 3
        runs = await service.all_finished()
        assert sum(run.state is RunState.FAILED for run in runs) == 3


@flow
async def asked(data: int) -> None: ...


@flow
async def asks(event: Event) -> None:
    if event.data:
        await asked(1)
    await sleep("1h")


@pytest.mark.parametrize("cancelled", ["itself", "its parent"])
async def test_who_waits_for_a_run_is_told_when_it_is_cancelled_before_it_goes_on(
    tmp_path: Path, cancelled: str
) -> None:
    """Either it sleeps, or it is the queued child of the run that is cancelled."""
    async with running(tmp_path, [asks, asked]) as service:
        await service.process.operator.do(Pause("asked"))
        service.emitter.flows = lambda _event: (asks,)
        first = (await service.send(cancelled == "its parent")).runs[0]
        await service.until(first, RunState.WAITING)
        steps = await service.process.journal.steps((await service.run(first)).seq)
        awaited = first if cancelled == "itself" else steps[0].origin
        assert awaited is not None
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            told = tasks.create_task(service.process.waiters.result(awaited, 30, is_new=True))
            await service.process.operator.do(Cancel(first))
        outcome = told.result()
    assert outcome is not None and outcome.state is RunState.CANCELLED


async def test_bulk_cancel_takes_only_what_is_unfinished(tmp_path: Path) -> None:
    async with running(tmp_path, [odd]) as service:
        done = await service.send(2)
        await service.finished(done.runs[0])
        await service.process.operator.do(Pause("odd"))
        for number in range(3):
            await service.send(number)
        cancelled = await service.process.operator.do(CancelAll(Filter(flow="odd")))
        assert len(cancelled) == 3
        assert (await service.run(done.runs[0])).state is RunState.SUCCEEDED


async def test_replay_starts_the_event_s_flows_again(tmp_path: Path) -> None:
    async with running(tmp_path, [odd]) as service:
        receipt = await service.send(2)
        await service.finished(receipt.runs[0])
        (again,) = await service.process.operator.do(Replay(receipt.event))
        run = await service.finished(again)
        assert (run.state, run.replay, run.event_id) == (RunState.SUCCEEDED, 1, receipt.event)


async def test_an_event_id_of_two_sources_must_be_told_apart(tmp_path: Path) -> None:
    async with running(tmp_path, [odd]) as service:
        first = make_event(2, "same")
        await service.emitter([first])
        await service.emitter([replace(first, source="/other")])
        with pytest.raises(Refused, match="/other, /test"):
            await service.process.operator.do(Replay("same"))
        assert len(await service.process.operator.do(Replay("same", "/other"))) == 1


async def test_what_does_not_exist_or_is_not_allowed_is_refused_by_name(tmp_path: Path) -> None:
    async with running(tmp_path, [odd]) as service:
        operator = service.process.operator
        receipt = await service.send(2)
        await service.finished(receipt.runs[0])
        with pytest.raises(NotFound, match="nothing"):
            await operator.do(Cancel("nothing-like-it"))
        with pytest.raises(NotFound, match="no event"):
            await operator.do(Replay("nothing"))
        with pytest.raises(Refused, match="succeeded"):
            await operator.do(Cancel(receipt.runs[0]))
        with pytest.raises(Refused, match="not a dead letter"):
            await operator.do(ReplayDead(receipt.runs[0]))
        with pytest.raises(NotFound, match="flows: odd"):
            await operator.do(Pause("even"))
        with pytest.raises(NotFound, match="triggers: test"):
            await operator.do(Fire("cron:never"))


async def test_firing_a_trigger_starts_its_flows(tmp_path: Path) -> None:
    seen: list[str] = []

    @flow
    async def work(event: Event) -> None:
        seen.append(event.type)

    async with running(tmp_path, [work]) as service:
        receipt = await service.process.operator.do(Fire("test"))
        await service.finished(receipt.runs[0])
    assert seen == ["turnout.test.fired"]


async def test_a_replay_whose_key_raises_is_refused_by_name(tmp_path: Path) -> None:
    @flow(ordered_by=lambda event: event.data["missing"])
    async def keyed(event: Event) -> None: ...

    async with running(tmp_path, [keyed]) as service:
        receipt = await service.send({})
        with pytest.raises(Refused, match=r"'keyed'.*KeyError"):
            await service.process.operator.do(ReplayDead(receipt.runs[0]))
        assert (await service.run(receipt.runs[0])).dead


async def test_a_paused_trigger_says_afterwards_what_it_is(tmp_path: Path) -> None:
    @flow(on=every("1h"))
    async def hourly() -> None: ...

    def metric(service: Running, value: float) -> bool:
        line = f'turnout_trigger_up{{trigger="every:1h"}} {value}'
        return line.encode() in service.process.metrics.render()

    async with running(tmp_path, [hourly]) as service:
        emitter = service.process.emitters["every:1h"]
        operator = service.process.operator
        emitter.down("the share is gone")
        await operator.do(Pause("every:1h"))
        assert metric(service, 0)
        with pytest.raises(Overloaded, match="paused") as refused:
            await emitter([make_event()])
        emitter.down(str(refused.value))  # as a trigger whose event was refused does
        await operator.do(Resume("every:1h"))
        assert metric(service, 0)  # it does not watch again because somebody has resumed it
        assert "trigger every:1h: the share is gone" in service.process.problems()
        await operator.do(Pause("every:1h"))
        emitter.up()
        assert metric(service, 0)
        await operator.do(Resume("every:1h"))
        assert metric(service, 1)
    async with running(tmp_path, [hourly]) as service:
        await service.process.operator.do(Pause("every:1h"))
    async with running(tmp_path, [hourly]) as service:
        service.process.emitters["every:1h"].up()
        assert metric(service, 0)  # still paused


async def test_only_what_exists_is_paused_and_whatever_is_paused_is_resumed(tmp_path: Path) -> None:
    @flow(on=every("1h"))
    async def hourly() -> None: ...

    async with running(tmp_path, [odd, hourly]) as service:
        operator = service.process.operator
        for name in ("flow:even", "trigger:every:2h", "even"):
            with pytest.raises(NotFound, match=r"flows: hourly, odd; triggers: every:1h"):
                await operator.do(Pause(name))
            with pytest.raises(NotFound):
                await operator.do(Resume(name))
        assert await service.process.journal.pauses(now=utc_now()) == {}
        assert (await operator.do(Pause("flow:hourly"))).name == "flow:hourly"
        assert (await operator.do(Pause("every:1h"))).name == "trigger:every:1h"
    async with running(tmp_path, [odd]) as service:  # both are gone now
        operator = service.process.operator
        assert (await operator.do(Resume("hourly"))).name == "flow:hourly"
        assert (await operator.do(Resume("trigger:every:1h"))).name == "trigger:every:1h"
        assert await service.process.journal.pauses(now=utc_now()) == {}


async def test_firing_with_what_no_flow_takes_stores_nothing_and_says_what_is_wanted(
    tmp_path: Path,
) -> None:
    @flow(on=files(f"{tmp_path}/inbox/*"))
    async def load(path: Path) -> str:
        return path.name

    @flow(on=webhook("/orders"), when=lambda event: event.data["amount"] > 0)
    async def bill(data: dict[str, int]) -> int:
        return data["amount"]

    async with running(tmp_path / "data", [load, bill]) as service:
        operator = service.process.operator
        with pytest.raises(InvalidData, match=r"flow load: the flow wants a file.*turnout replay"):
            await operator.do(Fire(f"files:{tmp_path}/inbox/*"))
        with pytest.raises(InvalidData, match=r"flow bill: KeyError: 'amount'.*--input"):
            await operator.do(Fire("webhook:/orders"))
        assert await service.process.journal.events(Filter()) == []
        filtered = await operator.do(Fire("webhook:/orders", b'{"amount": -1}'))
        assert filtered.runs == ()
        taken = await operator.do(Fire("webhook:/orders", b'{"amount": 3}'))
        assert (await service.finished(taken.runs[0])).result == b"3"


async def test_who_hands_in_what_every_flow_refuses_is_told_and_nothing_is_kept(
    tmp_path: Path,
) -> None:
    @flow(on=event("order.placed"))
    async def bill(data: dict[str, int]) -> int:
        return data["amount"]

    async with running(tmp_path, [bill]) as service:
        placed = replace(make_event([1]), type="order.placed")
        receipt = await service.process.operator.do(Emit(placed))
        assert not receipt.stored
        assert list(receipt.refusals) == ["bill"]
        assert await service.process.journal.events(Filter()) == []
        assert b'turnout_events_total{result="invalid",trigger="api"} 1.0' in (
            service.process.metrics.render()
        )


async def test_a_run_whose_flow_is_not_served_is_retried_and_replayed_when_it_is_back(
    tmp_path: Path,
) -> None:
    @flow
    async def other() -> None: ...

    async with running(tmp_path, [odd]) as service:
        receipt = await service.send(1)
        await service.finished(receipt.runs[0])
    async with running(tmp_path, [other]) as service:
        operator = service.process.operator
        retried = await operator.do(Retry(receipt.runs[0]))
        replayed = await operator.do(Replay(receipt.event))
        assert retried.state is RunState.QUEUED
        assert len(replayed) == 1
        await operator.do(Pause("other"))
    async with running(tmp_path, [odd]) as service:
        runs = await service.all_finished()
        assert [run.state for run in runs] == [RunState.FAILED] * 2


async def test_a_replay_of_a_flow_that_is_not_served_has_the_keys_of_its_run_and_no_class(
    tmp_path: Path,
) -> None:
    inside: list[int] = []

    @flow(mode="skip", key=lambda event: event.data, timeout="1m", priority="high")
    async def work(number: int) -> None:
        inside.append(number)
        assert len(inside) == 1, "two runs of a key at once"
        await asyncio.sleep(0.01)
        inside.remove(number)

    async with running(tmp_path, [work]) as service:
        receipt = await service.send(1)
        await service.finished(receipt.runs[0])
    async with running(tmp_path, [odd]) as service:
        for _ in range(2):  # no mode is asked, since none is known
            await service.process.operator.do(Replay(receipt.event))
        waiting = await service.process.journal.queued("work", 0, 9)
        assert [(run.keys, run.priority) for run in waiting] == [({"mode": "1"}, None)] * 2
    async with running(tmp_path, [work]) as service:
        runs = await service.all_finished()
        assert [run.state for run in runs] == [RunState.SUCCEEDED] * 3
