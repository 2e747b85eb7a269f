"""Patterns on a real journal: what starts a run, and what becomes of events and open windows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.running import Running, eventually, running
from turnout import Event, absent, all_of, count, event, flow, sequence, webhook
from turnout.service.domain.event import mint_id
from turnout.service.domain.flow import Flow
from turnout.service.domain.run import Run
from turnout.service.domain.units import utc_now
from turnout.service.journal.records import Filter, StoredPause
from turnout.service.operate.verbs import DropWindow, FireWindow
from turnout.service.operate.why import why


class Clock:
    """A clock that a test moves ahead of the wall clock."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        return utc_now() + self.ahead

    def pass_by(self, service: Running, **duration: float) -> None:
        """Let time pass, and have the service look at its clock."""
        self.ahead += timedelta(**duration)
        service.process.clock_set()


def key_of(event: Event) -> Any:
    return event.data["key"]


@flow
def told(events: list[Event]) -> list[str]:
    return [each.type for each in events]


@flow(on=sequence(event("a"), event("b"), within="10m", per=key_of, on_timeout=told))
def ordered(events: list[Event]) -> list[int]:
    return [each.data["n"] for each in events]


@flow(on=all_of(event("order"), event("payment"), within="10m", per=key_of))
def joined(events: list[dict[str, Any]]) -> list[int]:
    return [each["n"] for each in events]


@flow(on=count(event("failed"), 3, "10m", per=key_of))
def counted(events: list[Event]) -> list[int]:
    return [each.data["n"] for each in events]


@flow(on=absent(event("done"), "2h", after=event("begun"), per=key_of))
def alarm(begun: dict[str, Any]) -> int:
    return int(begun["n"])


@flow(on=absent(event("beat"), "2h"))
def silent(event: Event) -> str:
    return event.type


FLOWS: Sequence[Flow[..., Any]] = [told, ordered, joined, counted, alarm, silent]
NUMBERS = iter(range(10**9))


async def send(service: Running, kind: str, key: str | None = "k", n: int | None = None) -> str:
    """Emit an event of a type; returns its id."""
    made = Event(
        id=mint_id(),
        source="/test",
        type=kind,
        time=utc_now(),
        body=orjson.dumps({"key": key, "n": next(NUMBERS) if n is None else n}),
        trigger="api",
        minted=True,
    )
    (receipt,) = await service.process.api([made])
    return receipt.event


async def runs_of(service: Running, flow: Flow[..., Any]) -> list[Run]:
    """Return the runs of a flow, the oldest first, once they have ended."""
    await service.all_finished()
    return (await service.process.journal.runs(Filter(flow=flow.name, limit=1000)))[::-1]


async def results_of(service: Running, flow: Flow[..., Any]) -> list[Any]:
    return [orjson.loads(run.result or b"null") for run in await runs_of(service, flow)]


async def decisions_of(service: Running, event_id: str) -> list[tuple[str, str]]:
    (stored,) = await service.process.journal.event(event_id)
    return [(each["reason"], each["detail"]) for each in stored.decisions]


async def nothing_is_open(service: Running, *besides: str) -> None:
    async def closed() -> bool:
        return {each.flow for each in await service.process.journal.windows()} <= set(besides)

    await eventually(closed)


# ---------------------------------------------------------------- what starts, with which events


async def test_a1_a2_b_is_one_run_with_a2_and_b(tmp_path: Path) -> None:
    async with running(tmp_path, FLOWS) as service:
        first = await send(service, "a", n=1)
        await send(service, "a", n=2)
        await send(service, "b", n=3)
        assert await results_of(service, ordered) == [[2, 3]]
        [(reason, detail)] = await decisions_of(service, first)
        assert (reason, detail) == ("expired", "a later event of event:a has taken its place")


async def test_what_a_sequence_cannot_use_gets_a_decision(tmp_path: Path) -> None:
    async with running(tmp_path, FLOWS) as service:
        early, no_key = await send(service, "b"), await send(service, "a", key=None)
        [(reason, detail)] = await decisions_of(service, early)
        assert (reason, detail) == ("windowed", "it came before an event of event:a")
        [(reason, _)] = await decisions_of(service, no_key)
        assert reason == "windowed"
        assert not await runs_of(service, ordered)


async def test_an_expired_pattern_says_what_was_missing_and_its_members_go_to_on_timeout(
    tmp_path: Path,
) -> None:
    clock = Clock()
    async with running(tmp_path, FLOWS, now=clock) as service:
        only = await send(service, "a")
        clock.pass_by(service, minutes=11)
        await nothing_is_open(service, "silent")
        assert await results_of(service, told) == [["a"]]
        [(reason, detail)] = await decisions_of(service, only)
        assert reason == "expired"
        assert detail == "event:a came, and event:b did not within 10m"
        late = await send(service, "b")
        assert [reason for reason, _ in await decisions_of(service, late)] == ["windowed"]


@pytest.mark.parametrize("kinds", [("order", "payment"), ("payment", "order")])
async def test_order_and_payment_are_joined_in_either_order(
    tmp_path: Path, kinds: tuple[str, str]
) -> None:
    async with running(tmp_path, FLOWS) as service:
        await send(service, kinds[0], "other", 1)
        await send(service, kinds[0], "k", 2)
        await send(service, kinds[1], "k", 3)
        (run,) = await runs_of(service, joined)
        assert orjson.loads(run.result or b"") == [2, 3]
        assert run.events == 2


async def test_the_third_failure_of_a_key_fires_and_the_next_begins_anew(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path, FLOWS, now=clock) as service:
        aged = await send(service, "failed", n=1)
        clock.pass_by(service, minutes=9)
        for number in (2, 3, 4, 5):
            clock.pass_by(service, minutes=0.6)
            await send(service, "failed", n=number)
        assert await results_of(service, counted) == [[2, 3, 4]]
        [(reason, detail)] = await decisions_of(service, aged)
        assert (reason, detail) == ("expired", "there were 2 of 3 within 10m")
        (left,) = await service.process.journal.windows("counted")
        assert left.members == 1


async def test_windows_are_open_over_a_restart_and_fire_once(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path, FLOWS, now=clock) as service:
        await send(service, "a", n=1)
        await send(service, "order", n=2)
    clock.ahead += timedelta(minutes=9)
    async with running(tmp_path, FLOWS, now=clock) as service:
        await send(service, "b", n=3)
        await send(service, "payment", n=4)
        assert await results_of(service, ordered) == [[1, 3]]
        assert await results_of(service, joined) == [[2, 4]]


# ---------------------------------------------------------------- absence


async def test_what_does_not_come_is_told_once(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path, FLOWS, now=clock) as service:
        await service.process.start_triggers()
        await send(service, "begun", "late", 1)
        await send(service, "begun", "in time", 2)
        clock.pass_by(service, minutes=119)
        joined_later, came = await send(service, "begun", "late", 3), None
        came = await send(service, "done", "in time")
        clock.pass_by(service, minutes=2)
        await nothing_is_open(service)
        (run,) = await runs_of(service, alarm)
        assert (orjson.loads(run.result or b""), run.events) == (1, 2)
        assert not await decisions_of(service, joined_later)
        assert await decisions_of(service, came) == [("windowed", "it came in time")]


async def test_without_after_silence_is_told_from_the_first_start_on_and_once(
    tmp_path: Path,
) -> None:
    clock = Clock()
    for _ in range(2):  # a restart begins no time anew
        async with running(tmp_path, FLOWS, now=clock) as service:
            await service.process.start_triggers()
            await eventually(lambda: one_is_open(service))
            clock.pass_by(service, minutes=50)
    async with running(tmp_path, FLOWS, now=clock) as service:
        await service.process.start_triggers()
        clock.pass_by(service, minutes=30)
        await nothing_is_open(service)
        assert await results_of(service, silent) == ["turnout.absent"]
        await send(service, "beat")
        clock.pass_by(service, minutes=119)
        await send(service, "beat")
        clock.pass_by(service, minutes=119)
        assert await results_of(service, silent) == ["turnout.absent"]
        clock.pass_by(service, minutes=2)
        await nothing_is_open(service)
        assert await results_of(service, silent) == ["turnout.absent"] * 2
    async with running(tmp_path, FLOWS, now=clock) as service:
        await service.process.start_triggers()
        clock.pass_by(service, hours=5)
        assert not await service.process.journal.windows()


async def one_is_open(service: Running) -> bool:
    return len(await service.process.journal.windows("silent")) == 1


async def test_while_the_trigger_is_paused_the_time_stands_still(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path, [alarm], now=clock) as service:
        process = service.process
        await process.start_triggers()
        await send(service, "begun", n=1)
        clock.pass_by(service, minutes=100)
        pause = StoredPause(name="trigger:event:done", since=clock(), until=None, note="", by="")
        await process.journal.pause(pause)
        await process.pauses.refresh()
        await eventually(lambda: is_suspended(service))
        clock.pass_by(service, hours=10)
        assert process.suspended() == {"alarm": "trigger event:done is paused"}
        await send(service, "begun", "opened meanwhile", 2)
        clock.pass_by(service, hours=10)
        await process.journal.resume("trigger:event:done")
        await process.pauses.refresh()
        await eventually(lambda: is_running_on(service))
        clock.pass_by(service, minutes=19)
        assert not await runs_of(service, alarm)
        clock.pass_by(service, minutes=2)
        await eventually(lambda: has_fired(service, 1))
        clock.pass_by(service, minutes=98)
        assert await results_of(service, alarm) == [1]
        clock.pass_by(service, minutes=2)
        await nothing_is_open(service)
        assert await results_of(service, alarm) == [1, 2]


async def is_suspended(service: Running) -> bool:
    (window,) = await service.process.journal.windows("alarm")
    return window.due_at is None and window.remaining_seconds is not None


async def is_running_on(service: Running) -> bool:
    windows = await service.process.journal.windows("alarm")
    return all(window.due_at is not None for window in windows)


async def has_fired(service: Running, count: int) -> bool:
    return len(await service.process.journal.runs(Filter(flow="alarm"))) == count


async def test_an_event_that_joins_a_suspended_window_leaves_it_the_time_it_has(
    tmp_path: Path,
) -> None:
    clock = Clock()
    async with running(tmp_path, [alarm], now=clock) as service:
        process = service.process
        await process.start_triggers()
        await send(service, "begun", n=1)
        process.emitters["event:done"].down("the broker is away")
        await eventually(lambda: is_suspended(service))
        await send(service, "begun", n=2)
        assert await is_suspended(service)
        process.emitters["event:done"].up()
        await eventually(lambda: is_running_on(service))
        clock.pass_by(service, minutes=121)
        await nothing_is_open(service)
        (run,) = await runs_of(service, alarm)
        assert run.events == 2


async def test_after_a_downtime_senders_have_a_minute_to_come_again(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path, [alarm], now=clock) as service:
        await send(service, "begun", "told", 1)
        await send(service, "begun", "came", 2)
    clock.ahead += timedelta(hours=3)
    async with running(tmp_path, [alarm], now=clock) as service:
        await service.process.start_triggers()
        await send(service, "done", "came")
        clock.pass_by(service, seconds=30)
        assert not await runs_of(service, alarm)
        words = "senders of trigger event:done have a minute to come again"
        assert service.process.suspended() == {"alarm": words}
        clock.pass_by(service, seconds=35)
        await nothing_is_open(service)
        assert await results_of(service, alarm) == [1]


# ---------------------------------------------------------------- by hand, and why


async def test_a_window_that_is_fired_by_hand_runs_with_what_it_has(tmp_path: Path) -> None:
    async with running(tmp_path, FLOWS) as service:
        only = await send(service, "order", n=7)
        (window,) = await service.process.journal.windows("joined")
        fired = await service.process.operator.do(FireWindow(window.id[-8:], "ada"))
        assert fired.state == "fired"
        assert await results_of(service, joined) == [[7]]
        assert await decisions_of(service, only) == [("windowed", "fired by ada")]


async def test_a_window_that_is_dropped_starts_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, FLOWS) as service:
        only = await send(service, "order")
        (window,) = await service.process.journal.windows("joined")
        assert (await service.process.operator.do(DropWindow(window.id, "ada"))).state == "dropped"
        [(reason, _)] = await decisions_of(service, only)
        assert reason == "dropped"
        assert not await runs_of(service, joined)


async def test_why_tells_of_the_window_that_an_event_waits_in(tmp_path: Path) -> None:
    async with running(tmp_path, FLOWS) as service:
        journal = service.process.journal
        (told_of,) = await why(journal, await send(service, "a"), project=service.process.project)
        (answer,) = told_of["flows"]
        assert (answer["flow"], answer["answer"]) == ("ordered", "held")
        assert answer["now"]["would"] == "join"
        (window,) = told_of["windows"]
        assert window["rule"] == 'sequence(event:a, event:b, within="10m")'
        second = await send(service, "b")
        await service.all_finished()
        (told_of,) = await why(journal, second)
        (answer,) = told_of["flows"]
        assert (answer["answer"], len(answer["runs"])) == ("started", 1)


# ---------------------------------------------------------------- of every kind of trigger


async def test_parts_may_be_triggers_of_any_kind(tmp_path: Path) -> None:
    @flow(on=all_of(webhook("/paid"), event("order"), within="10m"))
    def ship(events: list[Event]) -> list[str]:
        return [each.trigger for each in events]

    async with running(tmp_path, [ship]) as service:
        made = Event(id=mint_id(), source="/s", type="paid", time=utc_now(), body=b"{}")
        await service.process.emitters["webhook:/paid"]([made])
        await send(service, "order")
        assert await results_of(service, ship) == [["webhook:/paid", "api"]]
