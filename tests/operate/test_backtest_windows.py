"""Backtest of flows with windows: of unchanged code what happened, of other what would have."""

from __future__ import annotations

import random
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.operate.test_backtest import deliver, report
from tests.support.inside import quiet
from turnout import (
    Event,
    absent,
    all_of,
    batch,
    count,
    current,
    debounce,
    event,
    every,
    flow,
    kafka,
    rate_limit,
    sequence,
    sleep,
    unique,
    webhook,
)
from turnout.service.domain.errors import TurnoutError
from turnout.service.journal.records import Filter
from turnout.service.operate.verbs import Cancel, DropWindow, FireWindow, Pause, Replay, Resume
from turnout.service.project import AnyFlow, Project
from turnout.testing import Service, kafka_event, serve, typed_event, webhook_event

orders = webhook("/orders", verify="none")
placed = event("order.placed")
paid = event("order.paid")
done = event("backup.done")
stream = kafka("orders", group="g")
ticks = every("2h")


def customer(event: Event) -> Any:
    return event.data["customer"]


async def work(data: dict[str, Any]) -> None:
    if data["for"]:
        await sleep(data["for"])


@flow(on=debounce(orders, "5m", max="12m", per=customer))
async def last(data: dict[str, Any]) -> None:
    await work(data)


@flow(
    on=debounce(placed, "10m", keep="all"), when=lambda event: event.data["amount"] > 2,
    key=lambda event: "all", mode="skip", timeout="1h",
)  # fmt: skip
async def whole(data: list[dict[str, Any]]) -> None:
    await work(data[0])


@flow(
    on=batch(stream, 3, "20m", per=customer), unique=unique(customer, until="1h"),
    rate=rate_limit("4/1h"),
)  # fmt: skip
async def batches(data: list[dict[str, Any]]) -> None:
    await work(data[-1])


NEWEST_ON = batch(orders, 4, "15m")


@flow(on=NEWEST_ON, key=lambda event: "all", mode="replace")
async def newest(data: list[dict[str, Any]]) -> None:
    await work(data[0])


@flow(on=count(orders, 3, "30m", per=customer))
async def counts(data: list[dict[str, Any]]) -> None:
    await work(data[0])


@flow
async def late(data: list[dict[str, Any]]) -> None:
    await work(data[0])


@flow(
    on=sequence(placed, orders, paid, within="40m", per=customer, on_timeout=late),
    key=customer, mode="latest",
)  # fmt: skip
async def row(events: list[Event]) -> None:
    await work(events[0].data)


@flow(on=all_of(placed, stream, within="25m", per=customer))
async def both(events: list[Event]) -> None:
    await work(events[0].data)


@flow(on=absent(paid, "20m", after=placed, per=customer))
async def unpaid(data: dict[str, Any]) -> None:
    await work(data)


@flow(on=absent(done, "30m", after=ticks))
async def unsaved() -> None:
    await sleep("1m")


@flow(on=absent(done, "1h"))
async def silent() -> None:
    await sleep("1m")


@flow(on=placed, unique=unique(customer, until="10m"))
async def plain(data: dict[str, Any]) -> None:
    current()


@flow(on=orders)
async def alone(data: dict[str, Any]) -> None:
    await work(data)


async def lists(data: list[dict[str, Any]]) -> None:
    """Take a list."""


FLOWS: tuple[AnyFlow, ...] = (
    last, whole, batches, newest, counts, late, row, both, unpaid, unsaved, silent, plain,
)  # fmt: skip
WINDOWED = [each for each in FLOWS if each.window is not None]


def payload(dice: random.Random) -> dict[str, Any]:
    return {
        "customer": dice.choice(["a", "b", None, "a"]),
        "amount": dice.randrange(8),
        "for": dice.choice([None, "1310ms", "307770ms", "1213130ms"]),
    }


async def a_day(service: Service, dice: random.Random, events: int) -> None:
    """Let events of all triggers come, and operators do what they do."""
    for _ in range(events):
        await service.advance(timedelta(seconds=dice.choice([0, 1, 30, 240, 300, 600, 1200])))
        data = payload(dice)
        kind = dice.randrange(20)
        if kind < 6:
            await deliver(service, webhook_event(last, data))
        elif kind < 10:
            await deliver(service, typed_event(placed, data))
        elif kind < 12:
            await deliver(service, typed_event(paid, data))
        elif kind < 16:
            await deliver(service, kafka_event(stream, data))
        elif kind < 17:
            await deliver(service, typed_event(done, {}))
        elif kind < 18:
            await deliver(service, webhook_event(last, [1]))  # does not fit
        else:
            await operate(service, dice)


async def operate(service: Service, dice: random.Random) -> None:
    windows = await service.journal.windows()
    runs = await service.journal.runs(Filter(limit=20))
    verbs: list[Any] = [FireWindow(each.id) for each in windows]
    verbs += [DropWindow(each.id) for each in windows]
    verbs += [Cancel(each.id) for each in runs] + [Replay(each.event_id) for each in runs[:5]]
    if verbs:
        with suppress(TurnoutError):
            await service.process.operator.do(dice.choice(verbs))
        await quiet(service)


def told(found: Any) -> list[Any]:
    if found.windows is None:
        return [each.as_dict() for each in found.differences[:3]]
    return [
        [each.as_dict() for each in found.differences[:3]],
        [each.as_dict() for each in found.windows.differences[:3]],
    ]


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_of_unchanged_code_it_says_exactly_what_happened(seed: int, full: bool) -> None:
    dice = random.Random(seed)
    async with serve(
        *FLOWS, keep_unmatched=timedelta(days=30), keep_finished=timedelta(days=30)
    ) as service:
        await a_day(service, dice, 1500 if full else 90)
        await service.restart()
        await a_day(service, dice, 500 if full else 30)
        for each in FLOWS:
            for back in (None, timedelta(hours=5)):
                found = await report(service, each.name, back=back)
                assert found.different == 0, (each.name, back, told(found))
                assert found.did == found.would
                if found.windows is not None:
                    assert found.windows.different == 0, (each.name, back, told(found))
                    assert found.windows.did == found.windows.would, each.name
                    assert found.windows.runs_did == found.windows.runs_would, each.name
            assert found.events or each in (late, silent, unsaved), each.name


async def test_an_event_stays_in_the_window_that_an_operator_closes_at_that_instant() -> None:
    async with serve(newest) as service:
        await some(service, "a")
        await deliver(service, webhook_event(last, payload(random.Random(0))))
        (window,) = await service.journal.windows()
        await service.process.operator.do(FireWindow(window.id))
        await deliver(service, webhook_event(last, payload(random.Random(1))))
        await service.advance("1h")
        found = await report(service, "newest")
    assert found.windows is not None
    assert (found.different, found.windows.different) == (0, 0), told(found)
    assert (found.windows.did, found.windows.would) == ({"started": 2}, {"started": 2})


# ---------------------------------------------------------------- other code


def edition(name: str, function: Any, **options: Any) -> Project:
    """Return a project with another edition of a flow."""
    return Project.of([flow(name=name, **options)(function)])


async def some(service: Service, *customers: str | None) -> list[str]:
    """Send orders a minute apart; returns their ids."""
    ids = []
    for each in customers:
        await service.advance("1m")
        made = webhook_event(last, {"customer": each, "amount": 5, "for": None})
        await deliver(service, made)
        ids.append(made.id)
    return ids


async def test_a_window_says_how_many_runs_there_would_have_been_and_with_which_events() -> None:
    async with serve(alone) as service:
        ids = await some(service, "a", "b", "a", "a")
        await service.advance("1h")
        project = edition("alone", lists, on=batch(orders, 3, "10m"))
        found = await report(service, "alone", project=project)
    assert found.windows is not None and found.different == 0
    assert (found.windows.runs_did, found.windows.runs_would) == (4, 2)
    told = [(each.at.minute, each.outcome, each.events) for each in found.windows.shown if each.at]
    assert told == [(3, "started", ids[:3]), (14, "started", ids[3:])]
    assert found.windows.different == 2 and found.windows.differences[0].did is None


async def test_another_period_says_which_windows_differ() -> None:
    async with serve(last) as service:
        ids = await some(service, "a", "a", "b", "a")
        await service.advance("1h")
        shorter = edition("last", last.function, on=debounce(orders, "90s", per=customer))
        found = await report(service, "last", project=shorter)
    assert found.windows is not None and found.different == 0
    first, second = found.windows.differences
    assert first.did is not None and first.would is not None
    assert (first.did.events, first.would.events) == ([ids[0], ids[1], ids[3]], ids[:2])
    assert second.did is None and second.would is not None
    assert (second.would.events, second.would.at) == (
        [ids[3]],
        datetime(2026, 1, 1, 0, 5, 30, tzinfo=UTC),
    )


async def test_a_flow_that_has_no_window_any_more_starts_a_run_for_each_event() -> None:
    async with serve(newest) as service:
        await some(service, "a", "a", "a", "a", "a")
        found = await report(
            service, "newest", project=edition("newest", alone.function, on=orders)
        )
    assert found.windows is None
    assert (dict(found.did), dict(found.would)) == ({"started": 5}, {"started": 5})


async def test_conditions_are_asked_when_a_window_fires() -> None:
    async with serve(newest) as service:
        await some(service, *"aabbaabb")
        rules = {"unique": unique(customer, until="1h")}
        found = await report(
            service, "newest", project=edition("newest", newest.function, on=NEWEST_ON, **rules)
        )
    assert found.windows is not None
    assert (found.windows.did["started"], found.windows.would) == (
        2, {"started": 1, "unique": 1},
    )  # fmt: skip
    assert found.different == 4, "each event of the second batch"


async def test_absences_that_were_put_off_are_taken_as_they_went() -> None:
    async with serve(unpaid) as service:
        await service.advance("1s")
        await deliver(service, typed_event(placed, {"customer": "a", "amount": 1, "for": None}))
        await service.process.operator.do(Pause(paid.name))
        await service.advance("2h")
        await service.process.operator.do(Resume(paid.name))
        await service.advance("2h")
        found = await report(service, "unpaid")
        sooner = edition(
            "unpaid", unpaid.function, on=absent(paid, "10m", after=placed, per=customer)
        )
        unsure = await report(service, "unpaid", project=sooner)
    assert found.windows is not None and found.windows.different == found.different == 0
    assert found.notes == [
        "absences put off past their deadline, because their trigger or the service was paused, "
        "down or behind: 1; they are taken as they went"
    ]
    assert unsure.notes == [
        "absences at whose deadline it is not known whether their trigger was paused, down or "
        "behind: 1; they are taken to be told"
    ]


async def test_an_absence_of_a_new_flow_begins_with_the_period() -> None:
    async with serve(alone) as service:
        await some(service, "a")
        await service.advance("3h")
        project = edition("alone", silent.function, on=absent(done, "1h"))
        found = await report(service, "alone", project=project, back=timedelta(hours=2))
    assert found.windows is not None
    [closing] = found.windows.shown
    assert (closing.outcome, closing.count) == ("started", 0)


async def test_the_run_of_a_pattern_that_has_expired_is_no_run_of_an_event() -> None:
    async with serve(late, row) as service:
        await service.advance("1s")
        await deliver(service, typed_event(placed, {"customer": "a", "amount": 1, "for": None}))
        await service.advance("2h")
        found = await report(service, "late")
        pattern = await report(service, "row")
        runs = await service.journal.runs(Filter(flow="late"))
    assert len(runs) == 1 and found.events == found.different == 0
    assert pattern.would == {"expired": 1}
