"""Flows with a throttle in a service: order, keys, retries, restarts, reloads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from tests.support.inside import scheduler
from tests.support.running import Running, eventually, make_event, running
from turnout import current, flow, limit, retry, sleep, task, throttle
from turnout.service.app.reload import reload_project
from turnout.service.domain.event import Event
from turnout.service.domain.run import RunState
from turnout.service.domain.units import utc_now
from turnout.service.project import Project


async def starts(service: Running) -> list[datetime]:
    """Return the instants of the recorded starts."""
    return [start.at for start in await service.process.journal.starts()]


def spread(instants: Sequence[datetime], count: int) -> timedelta:
    """Return the shortest stretch in which more than so many starts lie."""
    return min(later - earlier for earlier, later in zip(instants, instants[count:], strict=False))


async def until_blocked(service: Running, flow: str, count: int) -> None:
    """Wait until so many runs of a flow are set aside until a key is free."""
    blocked = scheduler(service.process).queue(flow).blocked

    async def are_blocked() -> bool:
        return len(list(blocked.runs())) == count

    await eventually(are_blocked)


async def test_runs_start_in_order_as_the_rate_lets_them(tmp_path: Path) -> None:
    seen: list[int] = []

    @flow(rate=throttle("3/200ms"))
    async def paced(event: Event) -> None:
        seen.append(event.data)

    async with running(tmp_path, [paced]) as service:
        await service.emitter([make_event(number) for number in range(10)])
        await service.all_finished()
        recorded = await starts(service)
    assert seen == list(range(10))
    assert len(recorded) == 10
    assert spread(recorded, 3) >= timedelta(milliseconds=200)
    assert recorded[2] - recorded[0] < timedelta(milliseconds=200), "at once while there is room"


async def test_a_throttled_key_holds_up_only_its_own_runs(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    @flow(rate=throttle("1/300ms", per=lambda event: event.data[0]))
    async def paced(event: Event) -> None:
        seen.append(tuple(event.data))

    async with running(tmp_path, [paced]) as service:
        sent = [("a", 1), ("a", 2), ("a", 3), ("b", 1), (None, 1), (None, 2)]
        await service.emitter([make_event(one) for one in sent])
        await service.all_finished()
        recorded = await service.process.journal.starts()
    assert set(seen[:4]) == {("a", 1), ("b", 1), (None, 1), (None, 2)}
    assert seen[4:] == [("a", 2), ("a", 3)]
    assert len(recorded) == 4, "a run without a key is not counted"


async def test_failed_attempts_and_retries_of_the_flow_count(tmp_path: Path) -> None:
    @flow(rate=throttle("2/200ms"), retry=retry(2, delay="1ms"))
    async def charge(event: Event) -> None:
        if current().attempt <= 2:
            raise ConnectionError

    async with running(tmp_path, [charge]) as service:
        await service.emitter([make_event(number) for number in range(3)])
        runs = await service.all_finished()
        recorded = await starts(service)
    assert [run.state for run in runs] == [RunState.SUCCEEDED] * 3
    assert len(recorded) == 9
    assert spread(recorded, 2) >= timedelta(milliseconds=200)


async def test_flows_that_share_a_name_start_no_more_together(tmp_path: Path) -> None:
    crm = throttle("crm", "2/100ms")
    seen: list[str] = []

    @flow(rate=crm)
    async def bill(event: Event) -> None:
        seen.append("bill")

    @flow(rate=crm)
    async def remind(event: Event) -> None:
        seen.append("remind")

    async with running(tmp_path, [bill, remind]) as service:
        await service.emitter([make_event(number) for number in range(6)])
        await service.all_finished()
        recorded = await starts(service)
    assert len(recorded) == 12
    assert spread(recorded, 2) >= timedelta(milliseconds=100)
    assert {"bill", "remind"} == set(seen[:6]), "neither flow starves"


async def test_a_restart_forgets_no_start(tmp_path: Path) -> None:
    @flow(rate=throttle("3/h"))
    async def paced() -> None: ...

    async with running(tmp_path, [paced]) as service:
        for number in range(2):
            await service.finished((await service.send(number)).runs[0])
    for _ in range(2):
        async with running(tmp_path, [paced]) as service:
            await service.send()
            await service.send()

            async def waits(service: Running = service) -> bool:
                return service.process.dispatcher.next_alarm_at() is not None

            await eventually(waits)
            recorded = await starts(service)
            assert len(recorded) == 3
            alarm = service.process.dispatcher.next_alarm_at()
            assert alarm == recorded[0] + timedelta(hours=1)


async def test_a_flow_that_a_reload_brings_back_forgets_no_start(tmp_path: Path) -> None:
    @flow(rate=throttle("2/h"))
    async def paced() -> None: ...

    @flow
    async def other() -> None: ...

    async with running(tmp_path, [paced]) as service:
        for _ in range(2):
            await service.finished((await service.send()).runs[0])
    async with running(tmp_path, [other]) as service:  # which knows of no throttle
        await reload_project(service.process, Project.of([paced]))
        service.emitter.flows = lambda _event: (paced,)
        await service.send()

        async def waits() -> bool:
            return service.process.dispatcher.next_alarm_at() is not None

        await eventually(waits)
        recorded = await starts(service)
        assert service.process.dispatcher.next_alarm_at() == recorded[0] + timedelta(hours=1)
        assert len(recorded) == 2


async def test_a_delivery_that_comes_twice_gives_its_start_back(tmp_path: Path) -> None:
    @flow(rate=throttle("2/h"))
    async def paced() -> None: ...

    async with running(tmp_path, [paced]) as service:
        await service.finished((await service.send(1, event_id="a")).runs[0])
        for _ in range(3):
            assert (await service.send(1, event_id="a")).duplicate
        again = await service.send(1, event_id="b")
        assert (await service.finished(again.runs[0])).state is RunState.SUCCEEDED
        assert len(await starts(service)) == 2


async def test_a_clock_that_was_once_ahead_stops_nothing(tmp_path: Path) -> None:
    @flow(rate=throttle("1/h"))
    async def paced() -> None: ...

    async with running(tmp_path, [paced], now=lambda: utc_now() + timedelta(days=99)) as service:
        await service.finished((await service.send()).runs[0])
    async with running(tmp_path, [paced]) as service:
        await service.finished((await service.send()).runs[0])
    async with running(tmp_path, [paced]) as service:  # what has started since then counts
        await service.send()

        async def waits() -> bool:
            return service.process.dispatcher.next_alarm_at() is not None

        await eventually(waits)
        assert len(await starts(service)) == 2


async def test_retries_of_a_task_and_runs_that_wake_up_do_not_count(tmp_path: Path) -> None:
    tries = 0

    @task(retry=retry(2, delay="1m", jitter=False))
    async def fetch() -> None:
        nonlocal tries
        tries += 1
        if tries < 2:
            raise ConnectionError

    @flow(rate=throttle("1/h"))
    async def nap(event: Event) -> None:
        await sleep("10ms")
        await fetch()
        await sleep("10ms")

    ahead = timedelta(0)
    async with running(tmp_path, [nap], now=lambda: utc_now() + ahead) as service:
        first = await service.send(1)
        await service.send(2)  # it is held until an hour has passed

        async def backs_off() -> bool:
            return (await service.run(first.runs[0])).state is RunState.RETRYING

        await eventually(backs_off)
        ahead = timedelta(minutes=5)
        service.process.dispatcher.clock_set()
        assert (await service.finished(first.runs[0])).state is RunState.SUCCEEDED
        assert len(await starts(service)) == 1
        assert service.process.journal.counts()[0]["queued"] == 1


async def test_a_throttled_flow_keeps_a_bounded_part_of_its_backlog_in_memory(
    tmp_path: Path,
) -> None:
    @flow(rate=throttle("1/h"))
    async def paced() -> None: ...

    async with running(tmp_path, [paced]) as service:
        for _ in range(20):
            await service.emitter([make_event(number) for number in range(50)])
        queue = scheduler(service.process).queue("paced")
        assert sum(1 for _ in queue.rows()) <= 300


async def test_a_run_that_is_accepted_while_the_flow_waits_starts_behind_the_others(
    tmp_path: Path,
) -> None:
    seen: list[int] = []

    @flow(rate=throttle("1/100ms"))
    async def paced(event: Event) -> None:
        seen.append(event.data)

    async with running(tmp_path, [paced]) as service:
        for number in range(12):
            await service.send(number)
            await asyncio.sleep(0.03)
        await service.all_finished()
    assert seen == list(range(12))


async def test_a_run_that_wakes_up_does_not_wait_behind_a_retry(tmp_path: Path) -> None:
    free = asyncio.Event()

    @flow(rate=throttle("3/h"), concurrency=1, retry=retry(1, delay="50ms"))
    async def work(event: Event) -> None:
        if event.data == "first":
            await free.wait()
        if event.data == "fails":
            raise ConnectionError
        if event.data == "sleeps":
            await sleep("300ms")  # meanwhile the retry is due, and waits for an hour

    async with running(tmp_path, [work]) as service:
        await service.send("first")
        await service.send("fails")
        asleep = await service.send("sleeps")
        free.set()
        assert (await service.finished(asleep.runs[0])).state is RunState.SUCCEEDED
        assert service.process.journal.counts()[0]["retrying"] == 1


async def test_a_run_that_wakes_up_does_not_wait_behind_held_runs_of_its_limit_key(
    tmp_path: Path,
) -> None:
    go = asyncio.Event()

    @flow(rate=throttle("1/h"), concurrency=limit(1, per=lambda event: "key"))
    async def nap() -> None:
        await go.wait()
        await sleep("1ms")  # the next run has the turn of the key then, and is held

    async with running(tmp_path, [nap]) as service:
        first, *_ = await service.emitter([make_event(number) for number in range(3)])
        await until_blocked(service, "nap", 2)
        go.set()
        assert (await service.finished(first.runs[0])).state is RunState.SUCCEEDED
        assert service.process.journal.counts()[0]["queued"] == 2


async def test_the_turn_of_a_held_retry_goes_to_a_run_of_its_limit_key_that_wakes_up(
    tmp_path: Path,
) -> None:
    ahead = timedelta(0)
    go = asyncio.Event()

    @flow(
        rate=throttle("4/h"),
        concurrency=limit(1, per=lambda event: "key"),
        retry=retry(1, delay="1m", jitter=False),
    )
    async def work(event: Event) -> None:
        match event.data:
            case "fails":
                raise ConnectionError
            case "sleeps":
                await sleep("1m")
            case "works":
                await go.wait()

    async with running(tmp_path, [work], now=lambda: utc_now() + ahead) as service:
        fails = await service.send("fails")
        asleep = [await service.send("sleeps") for _ in range(2)]
        works = await service.send("works")
        await service.until(works.runs[0], RunState.RUNNING)
        ahead = timedelta(minutes=5)
        service.process.dispatcher.clock_set()
        await until_blocked(service, "work", 3)
        go.set()
        for one in asleep:
            assert (await service.finished(one.runs[0])).state is RunState.SUCCEEDED
        assert (await service.run(fails.runs[0])).state is RunState.RETRYING
