"""Debounce: of a burst of events one run, once it has been quiet."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from tests.support.inside import end
from turnout import Event, debounce, flow, unique, webhook
from turnout.service.domain.run import Run, RunState
from turnout.service.journal.records import Filter
from turnout.service.operate.verbs import Cancel
from turnout.testing import serve, webhook_event
from turnout.testing.service import Service

HOOK = webhook("/saved")
Seen = list[Any]


async def save(service: Service, **page: object) -> None:
    await service.emit(webhook_event(HOOK, json=page, at=service.clock.now()))


async def stored(service: Service, state: RunState | None = None) -> list[Run]:
    return list(reversed(await service.journal.runs(Filter(state=state))))


def noted(seen: Seen, **options: Any) -> Any:
    @flow(on=debounce(HOOK, "5s", **options))
    async def index(page: dict[str, Any]) -> None:
        seen.append(page["n"])

    return index


@pytest.mark.anyio
async def test_a_burst_starts_one_run_with_the_last_event_once_it_is_quiet() -> None:
    seen: Seen = []
    async with serve(noted(seen)) as service:
        for number in range(3):
            await save(service, n=number)
            await service.advance("4s")
        assert seen == []
        (scheduled,) = await stored(service)
        assert scheduled.state is RunState.SCHEDULED
        assert scheduled.due_at == service.clock.now() + timedelta(seconds=1)
        await service.advance("1s")
        assert seen == [2]
        (run,) = await stored(service)
        assert (run.id, run.state) == (scheduled.id, RunState.SUCCEEDED)
        assert run.as_dict()["events"] == 3


@pytest.mark.anyio
async def test_an_event_every_four_seconds_starts_a_run_each_minute_under_max() -> None:
    seen: Seen = []
    async with serve(noted(seen, max="1m")) as service:
        for number in range(45):
            await save(service, n=number)
            await service.advance("4s")
        assert seen == [14, 29, 44]


@pytest.mark.anyio
async def test_with_keep_all_the_run_gets_every_event_in_order() -> None:
    seen: Seen = []

    @flow(on=debounce(HOOK, "5s", keep="all"))
    async def index(pages: list[dict[str, Any]], events: list[Event]) -> None:
        seen.append([page["n"] for page in pages])
        seen.append([event.data["n"] for event in events])

    async with serve(index) as service:
        for number in range(3):
            await save(service, n=number)
        await service.advance("5s")
    assert seen == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.anyio
async def test_each_key_has_a_window_and_an_event_without_a_key_runs_alone_at_once() -> None:
    seen: Seen = []
    per: Callable[[Event], Any] = lambda event: event.data.get("user")  # noqa: E731
    async with serve(noted(seen, per=per)) as service:
        await save(service, n=1, user="a")
        await save(service, n=2, user="b")
        await save(service, n=3, user="a")
        await save(service, n=4)
        assert seen == [4]
        await service.advance("5s")
        assert sorted(seen[1:]) == [2, 3]


@pytest.mark.anyio
async def test_an_event_after_the_deadline_opens_the_next_window() -> None:
    seen: Seen = []
    async with serve(noted(seen)) as service:
        await save(service, n=1)
        await service.advance("5s")
        await save(service, n=2)
        assert seen == [1]
        await service.advance("5s")
    assert seen == [1, 2]


@pytest.mark.anyio
async def test_what_is_open_when_the_process_is_killed_fires_at_its_time_with_every_event() -> None:
    seen: Seen = []
    async with serve(noted(seen, keep="last")) as service:
        await save(service, n=1)
        await service.advance("2s")
        await save(service, n=2)
        await service.restart()
        await service.advance("4s")
        assert seen == []
        await service.advance("1s")
        assert seen == [2]
        (run,) = await stored(service)
        assert run.events == 2


@pytest.mark.anyio
async def test_what_came_due_while_the_service_was_down_fires_at_the_start() -> None:
    seen: Seen = []
    async with serve(noted(seen)) as service:
        await save(service, n=1)
        await end(service)
        service.clock.set(service.clock.now().replace(hour=23))
        await service.restart()
        await service.advance("1ms")
        assert seen == [1]


@pytest.mark.anyio
async def test_unique_is_asked_of_the_run_when_it_fires() -> None:
    seen: Seen = []

    @flow(
        on=debounce(HOOK, "5s", per=lambda event: event.data["n"]),
        unique=unique(lambda event: event.data["page"], until="1d"),
    )
    async def index(page: dict[str, Any]) -> None:
        seen.append(page["n"])

    async with serve(index) as service:
        await save(service, n=1, page="a")
        await save(service, n=2, page="a")
        await service.advance("5s")
        assert seen == [1]
        first, second = await stored(service)
        assert (first.state, second.state) == (RunState.SUCCEEDED, RunState.SKIPPED)
        decided = await service.assert_decided(second.event_id, "unique")
        assert decided["facts"]["other"] == first.id


@pytest.mark.anyio
async def test_cancelling_the_scheduled_run_drops_the_window_and_the_next_event_opens_another() -> (
    None
):
    seen: Seen = []
    async with serve(noted(seen)) as service:
        await save(service, n=1)
        (run,) = await stored(service)
        await service.process.operator.do(Cancel(run.id))
        await service.advance("5s")
        assert seen == []
        await service.assert_decided(run.event_id, "dropped")
        await save(service, n=2)
        await service.advance("5s")
        assert seen == [2]
