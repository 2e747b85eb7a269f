"""What happens to the events of a window when its run has ended, or when it ends without one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

import pytest

from turnout import approval, batch, debounce, flow, rate_limit, webhook
from turnout.service.domain.errors import NotFound
from turnout.service.domain.run import Run, RunState
from turnout.service.domain.windows.firing import Firing
from turnout.service.journal.records import Filter
from turnout.service.operate.documents import post_mortem
from turnout.service.operate.verbs import Replay, ReplayDead
from turnout.testing import serve, webhook_event
from turnout.testing.service import Service

HOOK = webhook("/reading")
Seen = list[Any]


async def send(service: Service, number: object) -> str:
    event = webhook_event(HOOK, json={"n": number}, at=service.clock.now())
    await service.emit(event)
    return event.id


async def stored(service: Service, state: RunState | None = None) -> list[Run]:
    return list(reversed(await service.journal.runs(Filter(state=state))))


def collecting(seen: Seen, **options: Any) -> Any:
    @flow(on=batch(HOOK, 2, "10s"), **options)
    async def store(readings: list[dict[str, Any]]) -> None:
        seen.append([each["n"] for each in readings])

    return store


@pytest.mark.anyio
async def test_a_replay_of_any_member_runs_the_same_members_again() -> None:
    seen: Seen = []
    async with serve(collecting(seen)) as service:
        await send(service, 1)
        second = await send(service, 2)
        (run,) = await stored(service)
        (again,) = await service.process.operator.do(Replay(second))
        await service.advance("1ms")
        assert seen == [[1, 2], [1, 2]]
        _, replayed = await stored(service)
        assert replayed.id == again
        assert (replayed.window_seq, replayed.replay) == (run.window_seq, 1)
        assert replayed.event_id == run.event_id


@pytest.mark.anyio
async def test_a_replay_of_the_run_of_a_window_runs_its_flow_alone() -> None:
    seen: Seen = []
    other: Seen = []

    @flow(on=HOOK)
    async def beside(reading: dict[str, Any]) -> None:
        other.append(reading["n"])

    async with serve(collecting(seen), beside) as service:
        for number in range(2):
            await send(service, number)
        [run] = [each for each in await stored(service) if each.flow == "store"]
        (again,) = await service.process.operator.do(Replay(run.id))
        await service.advance("1ms")
        replayed = await service.journal.run(again)
        with pytest.raises(NotFound, match="no event and no run 'none'"):
            await service.process.operator.do(Replay("none"))
    assert (seen, sorted(other)) == ([[0, 1], [0, 1]], [0, 1])
    assert replayed is not None and (replayed.replay, replayed.events) == (1, 2)


@pytest.mark.anyio
async def test_a_run_is_shown_with_the_events_of_its_window() -> None:
    async with serve(collecting([])) as service:
        events = [await send(service, number) for number in range(2)]
        (run,) = await stored(service)
        shown = await post_mortem(service.journal, run.id)
        assert (shown["event_id"], shown["events"]) == (events[0], 2)
        assert [each["event_id"] for each in shown["members"]] == events
        assert shown["members"][0]["trigger"] == HOOK.name


@pytest.mark.anyio
async def test_a_dead_batch_is_replayed_with_all_its_members() -> None:
    seen: Seen = []

    @flow(on=batch(HOOK, 2, "10s"))
    async def store(readings: list[dict[str, Any]]) -> None:
        seen.append(len(readings))
        if len(seen) == 1:
            raise RuntimeError("closed")

    async with serve(store) as service:
        await send(service, 1)
        await send(service, 2)
        (dead,) = await stored(service, RunState.FAILED)
        await service.process.operator.do(ReplayDead(dead.id))
        await service.advance("1ms")
        assert seen == [2, 2]


@pytest.mark.anyio
async def test_an_event_in_an_open_window_is_not_replayed() -> None:
    seen: Seen = []

    @flow(on=debounce(HOOK, "5s"))
    async def index(page: dict[str, Any]) -> None:
        seen.append(page["n"])

    async with serve(index) as service:
        event = await send(service, 1)
        with pytest.raises(Exception, match="waits in a window of flow index"):
            await service.process.operator.do(Replay(event))
        await service.advance("5s")
        assert seen == [1]


@pytest.mark.anyio
async def test_a_window_that_a_rate_limit_refuses_when_it_fires_leaves_a_decision() -> None:
    seen: Seen = []
    async with serve(collecting(seen, rate=rate_limit("1/h"), max_queued=1)) as service:
        events = [await send(service, number) for number in range(4)]
        assert seen == [[0, 1]]
        first, second = await stored(service)
        assert (first.state, second.state) == (RunState.SUCCEEDED, RunState.SKIPPED)
        await service.assert_decided(events[2], "rate_limit")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("mode", "first", "second"),
    [("skip", "waiting", "skipped"), ("replace", "cancelled", "waiting")],
)
async def test_a_mode_is_asked_when_a_window_fires_and_not_when_it_opens(
    mode: Literal["skip", "replace"], first: str, second: str
) -> None:
    @flow(on=batch(HOOK, 2, "10s"), mode=mode, timeout="1h")
    async def store(readings: list[dict[str, Any]]) -> None:
        await approval("store", timeout="3d")

    async with serve(store) as service:
        for number in range(3):
            await send(service, number)
        assert [run.state for run in await stored(service)] == ["waiting"]
        await send(service, 3)
        assert [run.state for run in await stored(service)] == [first, second]


@pytest.mark.anyio
async def test_a_dropped_window_leaves_a_decision_with_each_member() -> None:
    seen: Seen = []
    async with serve(collecting(seen)) as service:
        event = await send(service, 1)
        (window,) = await service.journal.windows()
        await service.journal.drop_window(window.id, now=service.clock.now(), by="ana")
        await service.advance("10s")
        assert seen == []
        decided = await service.assert_decided(event, "dropped", by="ana")
        assert decided["facts"]["window"] == window.id
        assert await service.journal.windows() == []


@pytest.mark.anyio
async def test_a_window_that_is_fired_by_hand_runs_with_what_it_has() -> None:
    seen: Seen = []
    async with serve(collecting(seen)) as service:
        await send(service, 1)
        (window,) = await service.journal.windows()
        closed = await service.journal.fire_window(
            window.id, Firing(), now=service.clock.now(), by="ana"
        )
        service.process.windows.begin(closed)
        await service.advance("1ms")
        assert seen == [[1]]


@pytest.mark.anyio
async def test_events_and_window_are_pruned_with_the_last_run_and_never_before() -> None:
    seen: Seen = []

    @flow(on=HOOK)
    async def note(reading: dict[str, Any]) -> None: ...

    async with serve(collecting(seen), note) as service:
        await send(service, 1)
        await send(service, 2)
        third = await send(service, 3)  # in an open window
        run = next(run for run in await stored(service) if run.flow == "store")
        later = service.clock.now() + timedelta(days=400)

        async def prune() -> None:
            while await service.journal.prune(
                finished_before=later,
                failed_before=later,
                unmatched_before=later,
                dedupe_before=later,
                now=later,
                limit=100,
            ):
                pass

        await prune()
        assert await service.journal.run(run.id) is None
        assert await service.journal.event(run.event_id) == []
        assert [len(await service.journal.event(third))] == [1]
        assert len(await service.journal.windows()) == 1
        await service.advance("10s")
        assert seen == [[1, 2], [3]]
        await prune()
        assert await service.journal.event(third) == []
        assert (
            await service.journal.read(
                lambda connection: connection.execute("SELECT count(*) FROM window_events").get
            )
            == 0
        )


@pytest.mark.anyio
async def test_a_dropped_events_age_limit_is_that_of_an_unmatched_one() -> None:
    seen: Seen = []
    async with serve(collecting(seen)) as service:
        event = await send(service, 1)
        (window,) = await service.journal.windows()
        await service.journal.drop_window(window.id, now=service.clock.now())
        later = service.clock.now() + timedelta(days=400)
        while await service.journal.prune(
            finished_before=later, failed_before=later, unmatched_before=later,
            dedupe_before=later, now=later, limit=100,
        ):  # fmt: skip
            pass
        assert await service.journal.event(event) == []
        assert await service.journal.window(window.id) is None
