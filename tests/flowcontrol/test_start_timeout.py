"""A run that has waited for its first start longer than `start_timeout` ends as skipped."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.gates import declare
from tests.support.running import Running, eventually, make_event, running
from turnout import Event, Refused, current, flow, limit, retry, sleep, throttle
from turnout.service.dispatch import memory
from turnout.service.domain.decisions import Reason
from turnout.service.domain.errors import SetupError
from turnout.service.domain.run import RunState
from turnout.service.domain.units import utc_now
from turnout.service.operate.verbs import Pause, Resume, Retry
from turnout.testing import serve

SUCCEEDED, SKIPPED = RunState.SUCCEEDED, RunState.SKIPPED


async def test_a_run_that_waited_too_long_ends_as_skipped_with_a_decision() -> None:
    @flow(start_timeout="10m", rate=throttle("1/h"))
    async def quote() -> None: ...

    async with serve(quote) as service:
        assert (await service.run(quote)).state is SUCCEEDED
        late = await service.run(quote)
        assert late.state is SKIPPED
        assert late.took == timedelta(hours=1), "it is looked at when its turn comes"
        run = await service.journal.run(late.id)
        assert run is not None and run.started_at is None and run.attempts == 0
        found = await service.assert_decided(
            run.event_id,
            "start_timeout",
            flow=quote,
            run=late.id,
            rule='start_timeout="10m"',
            period=600.0,
        )
        assert found["detail"] == 'it had waited 1h for its first start (start_timeout="10m")'
        assert (await service.run(quote)).state is SUCCEEDED, "it took nothing of the throttle"


async def test_a_pause_and_a_downtime_count(tmp_path: Path) -> None:
    ahead = timedelta(0)
    seen: list[int] = []

    @flow(start_timeout="10m")
    async def quote(event: Event) -> None:
        seen.append(event.data)

    async with running(tmp_path, [quote], now=lambda: utc_now() + ahead) as service:
        await service.process.operator.do(Pause("flow:quote"))
        await service.emitter([make_event(1), make_event(2)])
    ahead = timedelta(minutes=11)
    async with running(tmp_path, [quote], now=lambda: utc_now() + ahead) as service:
        await service.emitter([make_event(3)])
        await service.process.operator.do(Resume("flow:quote"))
        runs = await service.all_finished()
        assert [run.state for run in runs] == [SKIPPED, SKIPPED, SUCCEEDED]
        counted = service.process.metrics.decisions.labels("quote", Reason.START_TIMEOUT)
        assert counted.value == 2
    assert seen == [3]


async def test_a_backlog_that_is_late_gives_no_turn_of_its_class_away(tmp_path: Path) -> None:
    ahead = timedelta(0)
    started: list[str] = []

    @flow(start_timeout="10m", priority=lambda event: event.data, concurrency=limit(1))
    async def work(event: Event) -> None:
        started.append(event.data)

    async with running(tmp_path, [work], now=lambda: utc_now() + ahead) as service:
        await service.process.operator.do(Pause("flow:work"))
        await service.emitter([make_event("high") for _ in range(2 * memory.WINDOW + 1)])
    ahead = timedelta(minutes=11)
    async with running(tmp_path, [work], now=lambda: utc_now() + ahead) as service:
        await service.emitter([make_event("low") for _ in range(5)])
        await service.emitter([make_event("high")])
        await service.process.operator.do(Resume("flow:work"))
        await service.all_finished()
    assert started == ["high", *["low"] * 5]


async def test_only_the_first_start_has_a_timeout(tmp_path: Path) -> None:
    ahead = timedelta(0)

    @flow(start_timeout="10m", retry=retry(1, delay="1h", jitter=False))
    async def quote(event: Event) -> None:
        if current().attempt == 1:
            raise ConnectionError
        await sleep("1h")

    async with running(tmp_path, [quote], now=lambda: utc_now() + ahead) as service:
        sent = await service.send(1)
        for state in (RunState.RETRYING, RunState.WAITING):

            async def is_so(wanted: RunState = state) -> bool:
                return (await service.run(sent.runs[0])).state is wanted

            await eventually(is_so)
            ahead += timedelta(hours=2)
            service.process.dispatcher.clock_set()
        assert (await service.finished(sent.runs[0])).state is SUCCEEDED


async def test_who_asks_for_the_result_is_told(tmp_path: Path) -> None:
    ahead = timedelta(0)
    free = asyncio.Event()

    @flow(start_timeout="10m", concurrency=1)
    async def quote(event: Event) -> None:
        await free.wait()

    async with running(tmp_path, [quote], now=lambda: utc_now() + ahead) as service:
        await service.send(1)
        late = await service.send(2)
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(service.process.waiters.result(late.runs[0], 10))
            await asyncio.sleep(0)
            ahead = timedelta(minutes=11)
            free.set()
        outcome = asked.result()
        assert outcome is not None and outcome.state is SKIPPED
        await _retried_by_hand(service, late.runs[0])


async def _retried_by_hand(service: Running, run_id: str) -> None:
    """An operator's retry is due now: it has its time again."""
    await service.process.operator.do(Retry(run_id))
    assert (await service.finished(run_id)).state is SUCCEEDED


async def test_a_key_goes_on_behind_a_run_that_came_too_late(tmp_path: Path) -> None:
    ahead = timedelta(0)
    free, seen = asyncio.Event(), []

    @flow(start_timeout="10m", ordered_by=lambda event: "all")
    async def quote(event: Event) -> None:
        seen.append(event.data)
        await free.wait()

    async with running(tmp_path, [quote], now=lambda: utc_now() + ahead) as service:
        await service.emitter([make_event(1), make_event(2), make_event(3)])
        ahead = timedelta(minutes=11)
        await service.send(4)
        free.set()
        runs = await service.all_finished()
    assert [run.state for run in runs] == [SUCCEEDED, SKIPPED, SKIPPED, SUCCEEDED]
    assert seen == [1, 4]


async def test_a_parent_is_told_that_its_child_came_too_late() -> None:
    @flow(start_timeout="10m", rate=throttle("1/h"))
    async def child() -> str:
        return "done"

    @flow
    async def parent() -> str:
        first = await child()
        try:
            return first + await child()
        except Refused as refused:
            return f"{first}, {refused.reason}"

    async with serve(parent, child) as service:
        assert (await service.run(parent)).result == "done, start_timeout"


def test_a_start_timeout_of_zero_is_refused() -> None:
    with pytest.raises(SetupError) as refused:
        declare(start_timeout="0s")
    assert refused.value.message == (
        "flow 'bill': start_timeout='0s': no run starts in no time; leave it out for no bound"
    )
    with pytest.raises(SetupError, match="start_timeout=0: cannot read the duration 0"):
        declare(start_timeout=0)


async def test_a_limit_goes_on_behind_runs_that_came_too_late(tmp_path: Path) -> None:
    ahead = timedelta(0)
    begun, free, seen = asyncio.Event(), asyncio.Event(), []

    @flow(start_timeout="10m", concurrency=limit(1, per=lambda event: "all"))
    async def quote(event: Event) -> None:
        seen.append(event.data)
        begun.set()
        await free.wait()

    async with running(tmp_path, [quote], now=lambda: utc_now() + ahead) as service:
        await service.emitter([make_event(number) for number in range(300)])
        await begun.wait()
        ahead = timedelta(minutes=11)
        await service.send("last")
        free.set()
        runs = await service.all_finished()
    assert sum(run.state is SKIPPED for run in runs) == 299
    assert seen == [0, "last"]
