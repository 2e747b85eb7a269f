"""The testing kit: what it runs is what a service would run, and it takes no time."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from turnout import (
    Event,
    Fail,
    approval,
    at,
    cron,
    current,
    event,
    every,
    files,
    flow,
    gather,
    hmac,
    kafka,
    move,
    retry,
    secret,
    sleep,
    task,
    wait_for,
    webhook,
)
from turnout.service.domain.run import RunState
from turnout.service.operate.verbs import Pause
from turnout.testing import (
    START,
    file_event,
    kafka_event,
    run,
    serve,
    timer_event,
    typed_event,
    webhook_event,
)
from turnout.testing.fixture import Bench

A_DAY = retry(2, delay="24h", factor=1, max="24h", jitter=False)
done: list[str] = []
keys: list[str] = []
broken: dict[str, int] = {}
"""What the tasks really did, under which keys, and how often each is still to fail."""


@pytest.fixture(autouse=True)
def all_well() -> None:
    done.clear()
    keys.clear()
    broken.clear()


def act(what: str) -> str:
    done.append(what)
    if broken.get(what):
        broken[what] -= 1
        raise OSError(f"no {what}")
    return what


@task(retry=A_DAY)
async def fetch(what: str) -> str:
    keys.append(f"{what} {current().key()}")
    await asyncio.sleep(0)
    return act(what)


@task
def sort(what: str) -> str:
    return act(f"sorted {what}")


@flow
async def report(number: int = 0) -> list[str]:
    both = await gather(fetch("users"), fetch("orders"))
    many = await fetch.map([f"page {each}" for each in range(number)], limit=2)
    return [*both, *many, await sort.run("all")]


@flow(retry=A_DAY)
def in_a_thread() -> str:
    act("thread")
    return sort("rows")


@pytest.mark.alone
def test_a_day_of_backoff_takes_less_than_a_tenth_of_a_second() -> None:
    plain, took = [], []
    for _ in range(3):
        started = time.perf_counter()
        run(report)
        plain.append(time.perf_counter() - started)
        done.clear()
        broken.update(users=1, thread=1)
        started = time.perf_counter()
        result = run(report)
        took.append(time.perf_counter() - started)
        assert (result.state, result.took) == (RunState.SUCCEEDED, timedelta(days=1))
        assert result.steps["fetch#1"].tries == 2
    assert min(took) < max(0.1, 2 * min(plain)), "on a slow machine: twice a run without"


def test_a_flow_s_own_backoff_is_waited_for_too() -> None:
    broken["thread"] = 2
    result = run(in_a_thread)
    assert (result.result, result.attempts, result.took) == ("sorted rows", 3, timedelta(days=2))


def test_branches_sleep_at_the_same_time() -> None:
    broken.update(users=2, orders=1)
    result = run(report)
    assert result.took == timedelta(days=2)
    assert done == ["users", "orders", "users", "orders", "users", "sorted all"]


@pytest.mark.parametrize("number", range(1, 6))
def test_a_crash_at_any_step_changes_nothing(number: int) -> None:
    result = run(report, 2, crash_at=number)
    assert result.result == ["users", "orders", "page 0", "page 1", "sorted all"]
    assert (result.crashes, len(result.steps)) == (1, 5)
    assert {done.count(each) for each in done} <= {1, 2}
    assert sum(done.count(each) == 2 for each in set(done)) in (1, 2)  # branches run together
    assert len(set(keys)) == 4  # run twice, under one key


def test_there_must_be_a_step_to_crash_at() -> None:
    with pytest.raises(AssertionError, match="no step 9"):
        run(report, crash_at=9)


def test_a_crash_while_time_passes(flows: Callable[..., Bench]) -> None:
    broken["thread"] = 1
    service = flows(in_a_thread)
    result = service.run(in_a_thread, crash_at=1)
    assert (result.result, result.crashes, done.count("sorted rows")) == ("sorted rows", 1, 2)


async def test_time_passes_as_told() -> None:
    seen: list[datetime] = []

    @flow(retry=A_DAY)
    async def stamps() -> None:
        seen.append(service.clock.now())
        raise OSError

    async with serve(stamps) as service:
        result = await service.run(stamps)
        assert result.state is RunState.FAILED
        assert [each - START for each in seen] == [timedelta(days=each) for each in range(3)]
        await service.advance("1h")
        assert service.clock.now() == START + timedelta(days=2, hours=1)


async def test_concurrency_and_order_are_the_service_s_own() -> None:
    most = running = 0

    @flow(on=event("work"), concurrency=1)
    async def alone() -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1

    async with serve(alone) as service, asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(service.emit(typed_event(alone)))
    assert most == 1


# ---------------------------------------------------------------- events of every kind


@flow(on=webhook("/orders/{shop}", verify=hmac(header="x-sign"), secret=secret("NOT_THERE")))
async def ordered(happened: Event) -> Any:
    return [happened.data["id"], happened.params["shop"], happened.headers["x-trace"]]


@flow(on=cron("0 9 * * *"))
async def daily(happened: Event) -> Any:
    return happened.data["due"]


@flow(on=kafka("orders", group="billing"))
async def billed(happened: Event) -> Any:
    return [happened.data, happened.subject]


@flow(on=event("order.paid"), when=lambda happened: happened.data["amount"] > 0)
async def paid(happened: Event) -> Any:
    return happened.data["amount"]


async def test_events_of_every_kind(tmp_path: Path) -> None:
    @flow(on=files(f"{tmp_path}/*.csv"))
    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:4]

    file = tmp_path / "a.csv"
    file.write_bytes(b"1,2\n")
    due = datetime(2026, 5, 1, 9, tzinfo=UTC)
    sent = {"id": "o-1"}
    async with serve(ordered, daily, billed, paid, digest) as service:
        for happened, expected in [
            (
                webhook_event(ordered, sent, params={"shop": "7"}, headers={"X-Trace": "t"}),
                ["o-1", "7", "t"],
            ),
            (timer_event(daily, due), "2026-05-01T09:00:00Z"),
            (kafka_event(billed, {"n": 1}, key="k"), [{"n": 1}, "k"]),
            (typed_event(paid, {"amount": 3}), 3),
            (
                await asyncio.to_thread(file_event, digest, file),
                hashlib.sha256(b"1,2\n").hexdigest()[:4],
            ),
        ]:
            (result,) = await service.emit(happened)
            assert result.result == expected, result
        assert await service.emit(typed_event(paid, {"amount": 0})) == []
        with pytest.raises(ValueError, match="'paid' has no webhook trigger"):
            webhook_event(paid)


shipped = webhook("/shipped/{order}")
thanked = event("thanked")


@flow(on=webhook("/shop"), awaits=[shipped, thanked])
async def waits(order: dict[str, str]) -> list[str]:
    parcel = await wait_for(shipped, match={"order": order["id"]}, timeout="2d")
    thanks = await wait_for(thanked)
    return [parcel.data, thanks.data]


def test_an_event_that_is_waited_for(flows: Callable[..., Bench]) -> None:
    service = flows(waits)
    (result,) = service.emit(webhook_event(waits, {"id": "7"}))
    for happened, crash_at in (
        (webhook_event(shipped, "not this", params={"order": "8"}), None),
        (webhook_event(shipped, "parcel", params={"order": "7"}), 1),
        (typed_event(thanked, "thanks"), None),
    ):
        assert service.look(result.id).state is RunState.WAITING
        service.emit(happened, crash_at=crash_at)
    assert service.look(result.id).result == ["parcel", "thanks"]
    assert service.look(result.id).crashes == 1


@flow
async def asks() -> str:
    said = await approval("buyer")
    await sleep("1h")
    return f"{said.by}: {said.fields}"


def test_an_approval_is_answered(flows: Callable[..., Bench]) -> None:
    service = flows(asks)
    first, second = service.run(asks), service.run(asks)
    assert service.answer(first.id, by="me", fields={"euros": 5}).result == "me: {'euros': 5}"
    refused = service.answer(second.id, approved=False, reason="too dear")
    assert refused.error is not None and refused.error.message == "buyer said no: too dear"


def test_a_file_is_moved_once_its_run_has_ended(
    flows: Callable[..., Bench], tmp_path: Path
) -> None:
    @flow(on=files(f"{tmp_path}/in/**/*.csv", then=move("../done")))
    def read(path: Path) -> str:
        return path.read_text()

    file = tmp_path / "in" / "sub" / "a.csv"
    file.parent.mkdir(parents=True)
    file.write_text("1,2")
    (result,) = flows(read).emit(file_event(read, file))
    assert result.result == "1,2" and (tmp_path / "done" / "sub" / "a.csv").exists()


# ---------------------------------------------------------------- what a service does by itself


@flow(on=webhook("/orders"))
async def takes(data: dict[str, str]) -> str:
    done.append(f"order {data['id']}")
    return data["id"]


@pytest.mark.parametrize(("dedupe", "inside", "outside"), [("3d", "2d23h", "2h"),
                                                           ("10m", "9m", "2m")])  # fmt: skip
async def test_the_dedupe_window_ends_on_the_clock(dedupe: str, inside: str, outside: str) -> None:
    async with serve(takes, dedupe=dedupe) as service:
        again = webhook_event(takes, {"id": "7"}, headers={"Idempotency-Key": "7"})
        (first,) = await service.emit(again)
        await service.advance(inside)
        assert [each.id for each in await service.emit(again)] == [first.id]
        await service.advance(outside)
        (second,) = await service.emit(again)
        assert second.id != first.id and done == ["order 7"] * 2


async def test_old_runs_are_pruned_and_still_looked_at() -> None:
    async with serve(takes, keep_finished="7d") as service:
        (old,) = await service.emit(webhook_event(takes, {"id": "7"}))
        await service.advance("8d")
        assert await service.journal.run(old.id) is None
        assert (await service.look(old.id)).result == "7"


@flow(on=[every("6h"), cron("30 9 * * *"), at("2026-01-02T12:00", tz="UTC")])
async def ticks(event: Event) -> None:
    done.append(
        f"{event.trigger.partition(':')[0]} {event.time:%d %H:%M} {current().run.due_at:%H:%M}"
    )


async def test_timers_tick_while_time_passes_and_only_then() -> None:
    async with serve(ticks, asks_for_time) as service:
        await service.advance("1d")
        assert done == ["every 01 06:00 06:00", "cron 01 09:30 09:30", "every 01 12:00 12:00",
                        "every 01 18:00 18:00", "every 02 00:00 00:00"]  # fmt: skip
        done.clear()
        await service.run(asks_for_time)  # goes on to what the run waits for, and no further
        assert done == []
        await service.advance("3h")
        assert sorted(done) == ["at 02 12:00 12:00", "every 02 12:00 12:00"]
        await service.process.operator.do(Pause("every:6h"))
        done.clear()
        await service.advance("1d")
        assert done == ["cron 03 09:30 09:30"]


@flow
async def asks_for_time() -> None:
    await sleep("10h")


async def test_a_timer_counts_from_the_start_and_a_killed_one_goes_on() -> None:
    @flow(on=every("7m", start="now"))
    async def often() -> None:
        done.append("tick")

    async with serve(often, start=START + timedelta(minutes=3)) as service:
        await service.advance("6m")
        assert done == []
        await service.restart()
        await service.advance("1m")
        assert done == ["tick"]
        await service.advance("70m")
        assert done == ["tick"] * 11


# ---------------------------------------------------------------- mistakes are told


@flow
async def refuses() -> None:
    raise Fail("no such customer")


def test_a_failed_run_is_a_result_and_an_unknown_flow_is_not(flows: Callable[..., Bench]) -> None:
    service = flows(refuses)
    result = service.run(refuses)
    assert result.state is RunState.FAILED
    assert result.error is not None and result.error.message == "no such customer"
    with pytest.raises(AssertionError, match="'report' is not served here"):
        service.run(report)
    service.restart()
    assert service.run(refuses).crashes == 0
