"""Backtest: of unchanged code what happened, of other code what would have."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.support.inside import quiet
from turnout import (
    Event,
    Fail,
    emit,
    event,
    every,
    flow,
    kafka,
    limit,
    rate_limit,
    retry,
    sleep,
    throttle,
    unique,
    webhook,
)
from turnout.service.domain.errors import TurnoutError
from turnout.service.journal.records import Filter
from turnout.service.operate.backtest import KeepTimes, Report, backtest
from turnout.service.operate.verbs import Cancel, Replay
from turnout.service.project import AnyFlow, Project
from turnout.testing import Service, kafka_event, serve, typed_event, webhook_event

orders = webhook("/orders", verify="none")
placed = event("order.placed")
stream = kafka("orders", group="g")


def customer(event: Event) -> str:
    return str(event.data["customer"])


async def work(data: dict[str, Any]) -> None:
    """Take a while, wait, be retried, or fail, as the event says."""
    if data["for"]:
        await sleep(data["for"])
    if data["fails"]:
        raise Fail("as told")


@flow(on=[orders, placed], when=lambda event: event.data["amount"] > 3)
async def filters(data: dict[str, Any]) -> None:
    await work(data)


@flow(on=[orders, stream], key=customer, mode="skip", timeout="1h", retry=retry(1, delay="1m"))
async def skips(data: dict[str, Any]) -> None:
    await work(data)


@flow(on=placed, key=customer, mode="latest")
async def latest(data: dict[str, Any]) -> None:
    await work(data)


@flow(on=[placed, stream], key=customer, mode="replace")
async def replaces(data: dict[str, Any]) -> None:
    await work(data)


@flow(on=orders, unique=unique(customer, until="done"))
async def once(data: dict[str, Any]) -> None:
    await work(data)


@flow(on=[orders, placed], unique=unique(customer, until="40m"))
async def for_a_while(data: dict[str, Any]) -> None:
    await work(data)


@flow(on=placed, rate=[rate_limit("3/1h", per=customer), rate_limit("20/1h")])
async def limited(data: dict[str, Any]) -> None:
    await work(data)


@flow(
    on=orders, key=customer, mode="skip", timeout="1h", concurrency=limit(1),
    rate=[throttle("30/1h"), rate_limit("8/1h", per=customer)], start_timeout="2h",
)  # fmt: skip
async def delayed(data: dict[str, Any]) -> None:
    await work(data)


@flow(on=every("15m"), mode="skip", timeout="1h")
async def ticks() -> None:
    await sleep("20m")


@flow(on=placed)
async def calls(data: dict[str, Any]) -> None:
    with suppress(Exception):
        await skips(data)
    await emit("order.seen", data)


@flow(on=event("order.*"), key=customer, mode="skip", timeout="1h")
async def patterns(data: dict[str, Any]) -> None:
    await work(data)


FLOWS: tuple[AnyFlow, ...] = (
    filters, skips, latest, replaces, once, for_a_while, limited, delayed, ticks, calls, patterns,
)  # fmt: skip
KEEP_TIMES = KeepTimes(unmatched=timedelta(days=30), finished=timedelta(days=30))


async def report(
    service: Service, name: str, *, project: Project | None = None, back: timedelta | None = None
) -> Report:
    until = service.clock.now() + timedelta(microseconds=1)
    since = until - (back or timedelta(days=30))
    loaded = project or service.process.project
    return await backtest(
        service.journal, loaded, name, since=since, until=until, keep_times=KEEP_TIMES
    )


def payload(dice: random.Random) -> dict[str, Any]:
    return {
        "customer": dice.choice("abc"),
        "amount": dice.randrange(8),
        "for": dice.choice([None, "1s", "5m", "20m", "50m"]),
        "fails": dice.random() < 0.2,
    }


async def a_day(service: Service, dice: random.Random, events: int) -> None:
    """Let events of all kinds come for a day, and operators do what they do."""
    for _ in range(events):
        await service.advance(timedelta(seconds=dice.choice([0, 1, 30, 300, 1000])))
        data = payload(dice)
        kind = dice.randrange(8)
        if kind < 3:
            await deliver(service, webhook_event(filters, data))
        elif kind < 5:
            await deliver(service, typed_event(placed, data))
        elif kind < 7:
            await deliver(service, kafka_event(stream, data))
        elif dice.random() < 0.5:
            await deliver(service, typed_event(placed, {"customer": 7}))  # does not fit
        else:
            await operate(service, dice)


async def deliver(service: Service, made: Event) -> None:
    emitter = (
        service.process.api if made.trigger.startswith("event:")
        else service.process.emitters[made.trigger]
    )  # fmt: skip
    sent = replace(made, trigger="api") if made.trigger.startswith("event:") else made
    await emitter([sent])
    await quiet(service)


async def operate(service: Service, dice: random.Random) -> None:
    runs = await service.journal.runs(Filter(limit=20))
    chosen = dice.choice(runs) if runs else None
    do = service.process.operator.do
    if chosen is None:
        return
    with suppress(TurnoutError):
        await do(Cancel(chosen.id) if dice.random() < 0.5 else Replay(chosen.event_id))
    await quiet(service)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_of_unchanged_code_it_says_exactly_what_happened(seed: int, full: bool) -> None:
    dice = random.Random(seed)
    async with serve(
        *FLOWS, keep_unmatched=timedelta(days=30), keep_finished=timedelta(days=30)
    ) as service:
        await a_day(service, dice, 1500 if full else 80)
        await service.restart()
        await a_day(service, dice, 500 if full else 30)
        for each in FLOWS:
            found = await report(service, each.name)
            told = [difference.as_dict() for difference in found.differences[:3]]
            assert found.different == 0, (each.name, told)
            assert found.did == found.would
            assert found.events, each.name
        for name in ("skips", "for_a_while", "limited", "replaces"):
            half = await report(service, name, back=timedelta(hours=6))
            assert half.different == 0, (name, half.differences[:3])


# ---------------------------------------------------------------- other code


def other(was: AnyFlow, **options: Any) -> Project:
    """Return a project with another edition of a flow."""
    made = flow(name=was.name, **options)(was.function)
    return Project.of([made])


async def some(service: Service, *given: dict[str, Any]) -> list[str]:
    """Send orders a minute apart; returns their ids."""
    ids = []
    for data in given:
        await service.advance("1m")
        made = webhook_event(filters, {"amount": 5, "for": None, "fails": False} | data)
        await deliver(service, made)
        ids.append(made.id)
    return ids


async def test_another_filter_says_which_events_it_would_take() -> None:
    async with serve(filters) as service:
        ids = await some(service, *({"customer": "a", "amount": amount} for amount in (1, 4, 6)))
        project = other(filters, on=orders, when=lambda event: event.data["amount"] < 5)
        found = await report(service, "filters", project=project)
        runs = len(await service.journal.runs(Filter()))
    assert found.did == {"filtered": 1, "started": 2}
    assert found.would == {"filtered": 1, "started": 2}
    told = [(each.event, each.did, each.would) for each in found.differences]
    assert told == [(ids[0], "filtered", "started"), (ids[2], "started", "filtered")]
    assert 'when=lambda event: event.data["amount"] < 5' in found.differences[1].why
    assert runs == 2, "nothing was started"


async def test_a_mode_that_is_new_is_asked_of_runs_as_long_as_they_took() -> None:
    async with serve(filters) as service:
        await some(
            service,
            {"customer": "a", "for": "150s"}, {"customer": "a"}, {"customer": "b"},
            {"customer": "a"}, {"customer": "a"},
        )  # fmt: skip
        project = other(filters, on=orders, key=customer, mode="skip", timeout="1h")
        found = await report(service, "filters", project=project)
    assert [(each.would, each.accepted_at.minute) for each in found.differences] == [("skip", 2)]
    assert "was under way" in found.differences[0].why


async def test_a_rule_that_is_gone_starts_runs_that_take_as_long_as_others() -> None:
    async with serve(once) as service:
        await some(service, *({"customer": "a", "for": "150s"} for _ in range(6)))
        project = other(once, on=orders)
        found = await report(service, "once", project=project)
        assert (found.did["unique"], dict(found.would)) == (4, {"started": 6})
        shorter = other(once, on=orders, unique=unique(lambda event: event.data["amount"]))
        again = await report(service, "once", project=shorter)
    assert again.different == 0 and again.would["unique"] == 4


async def test_runs_that_were_not_made_are_told_as_an_assumption() -> None:
    async with serve(skips) as service:
        await some(service, *({"customer": "a", "for": "150s"} for _ in range(4)))
        project = other(
            skips, on=orders, key=lambda event: event.data["for"] and event.id, mode="skip",
            timeout="1h",
        )  # fmt: skip
        found = await report(service, "skips", project=project)
    assert found.would == {"started": 4}
    assert found.notes == [
        "how long 2 runs would take is not known: taken to be 2m30s, as long as others of the flow"
    ]


async def test_an_event_that_was_never_asked_about_counts_if_it_would_start_something() -> None:
    async with serve(filters, once) as service:
        await some(service, {"customer": "a"}, {"customer": "b"})
        found = await report(service, "latest", project=other(latest, on=orders))
    assert found.did == {"not_asked": 2} and found.would == {"started": 2}


async def test_a_shadow_is_asked_as_if_it_were_none() -> None:
    async with serve(filters) as service:
        await some(service, {"customer": "a"})
        found = await report(service, "filters", project=other(filters, on=orders, shadow=True))
    assert found.would == {"started": 1} and found.different == 0


async def test_what_a_shadow_said_agrees_with_what_it_would_start() -> None:
    shadow = flow(name="tried", on=orders, shadow=True)(filters.function)
    async with serve(shadow) as service:
        await some(service, {"customer": "a"}, {"customer": "b"})
        found = await report(service, "tried")
    assert (dict(found.did), dict(found.would), found.different) == (
        {"shadow": 2}, {"started": 2}, 0,
    )  # fmt: skip


async def test_it_says_what_it_could_not_see() -> None:
    async with serve(skips, filters) as service:
        await some(service, {"customer": "a"})
        until = service.clock.now()
        found = await backtest(
            service.journal, service.process.project, "skips",
            since=until - timedelta(days=8), until=until + timedelta(microseconds=1),
            keep_times=KeepTimes(unmatched=timedelta(days=1), finished=timedelta(days=7)),
        )  # fmt: skip
    kept = [
        "events that started nothing are kept for 1d",
        "events whose runs have ended are kept for 7d",
    ]
    assert {name: seen.notes for name, seen in found.triggers.items()} == {
        "webhook:/orders": kept,
        "kafka:orders/g": [
            "no events of it are stored",
            "of the events that started nothing, one in 1,000 is kept",
            *kept,
        ],
    }  # fmt: skip


async def test_a_bound_of_the_queue_is_not_asked() -> None:
    async with serve(filters) as service:
        await some(service, {"customer": "a"}, {"customer": "a"})
        project = other(filters, on=orders, max_queued=1, unique=unique(lambda event: None))
        found = await report(service, "filters", project=project)
    assert found.would == {"started": 2}
