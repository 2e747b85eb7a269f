"""What keeps a run from starting: said by the gate that refuses it, with its queue position."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import Running, eventually, make_event, running
from turnout import flow, limit
from turnout.service.domain.event import Event
from turnout.service.journal.records import EVERYTHING
from turnout.service.operate.verbs import Cancel, Pause, Resume, Retry
from turnout.service.operate.waits import waits_of
from turnout.service.project import AnyFlow

proceed = asyncio.Event()


def held(name: str = "held", **options: Any) -> AnyFlow:
    @flow(name=name, **options)
    async def work(event: Event) -> None:
        await proceed.wait()

    return work


async def waits(service: Running, *run_ids: str) -> list[Any]:
    runs = [await service.run(run_id) for run_id in run_ids]
    process = service.process
    found = await waits_of(process.journal, runs, process.waits_for)
    return [(found[run].cause, found[run].detail, dict(found[run].facts)) for run in run_ids]


async def started(service: Running, *data: Any) -> list[str]:
    """Emit events one after the other and return their runs."""
    return [(await service.emitter([make_event(each)]))[0].runs[0] for each in data]


async def are_running(service: Running, count: int) -> None:
    async def run() -> bool:
        return service.process.journal.counts()[0].get("running", 0) == count

    await eventually(run)


@pytest.fixture(autouse=True)
def nothing_proceeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "proceed", asyncio.Event())


def by_data(event: Event) -> str:
    return str(event.data)


async def test_a_run_behind_its_ordering_key_names_the_head(tmp_path: Path) -> None:
    async with running(tmp_path, [held(ordered_by=by_data)]) as service:
        head, _, second, third = await started(service, "a", "b", "a", "a")
        await are_running(service, 2)
        found = await waits(service, second, third)
        proceed.set()
    words = f"for run {head}, the head of key 'a'; it is number"
    assert found == [
        ("order", f"{words} 1 in line", {"key": "a", "other": head, "place": 1}),
        ("order", f"{words} 2 in line", {"key": "a", "other": head, "place": 2}),
    ]


async def test_a_retried_run_is_told_the_last_place_of_its_ordering_key(tmp_path: Path) -> None:
    async with running(tmp_path, [held(ordered_by=by_data)]) as service:
        head, second, third = await started(service, "a", "a", "a")
        await are_running(service, 1)
        await service.process.operator.do(Cancel(second))
        await service.process.operator.do(Retry(second))
        found = await waits(service, third, second)
        proceed.set()
        await service.all_finished()
    assert [facts for *_, facts in found] == [
        {"key": "a", "other": head, "place": place} for place in (1, 2)
    ]


async def test_a_run_behind_a_dead_head_says_how_its_key_goes_on(tmp_path: Path) -> None:
    @flow(ordered_by=by_data, on_dead="block")
    async def strict(event: Event) -> None:
        raise ValueError

    async with running(tmp_path, [strict]) as service:
        (head,) = await started(service, "a")
        await service.finished(head)
        ((cause, detail, _),) = await waits(service, *await started(service, "a"))
    assert cause == "order"
    assert detail == (
        f"for run {head}, the head of key 'a', which has failed: `turnout retry {head}` tries it "
        f"again, `turnout dead drop {head}` lets the key go on; it is number 1 in line"
    )


async def test_a_run_without_a_slot_says_how_many_there_are(tmp_path: Path) -> None:
    async with running(tmp_path, [held()], concurrency=2) as service:
        *_, third = await started(service, 1, 2, 3)
        await are_running(service, 2)
        found = await waits(service, third)
        proceed.set()
    assert found == [
        (
            "slot", "for a slot: 2 of 2 in use; it is number 1 in line",
            {"count": 2, "limit": 2, "place": 1},
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "rule", "key"),
    [
        ({"concurrency": 1}, "limit(1)", ""),
        ({"concurrency": limit(1, per=by_data)}, "limit(1, per=…)", " of key 'a'"),
    ],
)
async def test_a_run_at_a_limit_says_how_many_places_are_in_use(
    tmp_path: Path, options: dict[str, Any], rule: str, key: str
) -> None:
    async with running(tmp_path, [held(**options)]) as service:
        _, second, third = await started(service, "a", "a", "a")
        await are_running(service, 1)
        found = await waits(service, second, third)
        proceed.set()
    assert [cause for cause, *_ in found] == ["limit", "limit"]
    words = f"for a slot of {rule}{key}: 1 of 1 in use; it is number"
    assert [detail for _, detail, _ in found] == [f"{words} 1 in line", f"{words} 2 in line"]
    assert found[0][2].items() >= {"rule": rule, "count": 1, "limit": 1, "place": 1}.items()


async def test_a_run_of_a_paused_flow_says_who_paused_it_and_until_when(tmp_path: Path) -> None:
    async with running(tmp_path, [held()]) as service:
        pause = Pause("held", lasts=timedelta(hours=1), note="the disk", by="ada")
        await service.process.operator.do(pause)
        found = await waits(service, *await started(service, 1))
        stored = service.process.pauses.of_flow("held")
        await service.process.operator.do(Resume("held"))
        await service.process.operator.do(Pause(EVERYTHING))
        ((_, told, _),) = await waits(service, *await started(service, 1))
    assert told == "for everything to be resumed"
    assert stored is not None and stored.until is not None
    ((cause, detail, facts),) = found
    assert cause == "pause"
    until = stored.until.isoformat(timespec="seconds").replace("+00:00", "Z")
    assert detail == (
        f"for flow 'held' to be resumed, at {until} at the latest (paused by ada, the disk)"
    )
    assert facts == {
        "since": stored.since, "until": stored.until, "by": "ada", "note": "the disk",
    }  # fmt: skip
