"""What waits is seen in the metrics: runs that could start, since when, and those of later."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.program import Program
from tests.support.running import Running, eventually, make_event, running
from turnout import batch, debounce, event, every, flow, label, limit, retry, sleep
from turnout.service.app.process import ManualTrigger
from turnout.service.domain.run import RunState
from turnout.service.operate.verbs import Pause

proceed = asyncio.Event()


@pytest.fixture(autouse=True)
def nothing_proceeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "proceed", asyncio.Event())


@flow(concurrency=1)
async def work() -> None:
    await proceed.wait()


@flow(retry=retry(1, delay="1h", jitter=False))
async def retries() -> None:
    raise ConnectionError("no answer")


@flow
async def paused() -> None: ...


async def gauges(service: Running, name: str) -> dict[str, float]:
    """Return the values of a gauge, by flow."""
    await service.process.scrape.measure()
    lines = service.process.metrics.render().decode().splitlines()
    found = [line for line in lines if line.startswith(f"turnout_{name}{{")]
    return {line.split('"')[1]: float(line.split()[-1]) for line in found}


async def test_due_and_scheduled_runs_of_each_flow_are_counted(tmp_path: Path) -> None:
    async with running(tmp_path, [work, retries, paused]) as service:
        await service.process.operator.do(Pause("paused"))
        receipts = [await service.emitter([make_event(number)]) for number in range(3)]
        runs = receipts[0][0].runs

        async def retrying() -> bool:
            states = [(await service.run(run)).state for run in runs]
            return RunState.RETRYING in states

        await eventually(retrying)

        async def works() -> bool:
            return service.process.journal.counts()[0].get("running", 0) == 1

        await eventually(works)
        counted = await gauges(service, "due_runs")
        oldest = await gauges(service, "oldest_due_seconds")
        scheduled = await gauges(service, "scheduled_runs")
        proceed.set()
    assert (counted["work"], counted["paused"]) == (2, 0)
    assert oldest["work"] > 0 and oldest["paused"] == 0
    assert scheduled["retries"] >= 1
    assert scheduled["work"] == 0


@flow
async def waits_for_tomorrow() -> None:
    await sleep("1d")


async def test_of_many_runs_only_the_one_that_waits_for_its_turn_is_due(tmp_path: Path) -> None:
    start = datetime(2026, 3, 4, 12, tzinfo=UTC)
    passed = 0.0

    def now() -> datetime:
        return start + timedelta(seconds=passed)

    tomorrow = flow(name="tomorrow")(waits_for_tomorrow.function)
    async with running(tmp_path, [work, retries, tomorrow], now=now, concurrency=16) as service:

        async def submit(name: str, count: int) -> None:
            flows = [service.process.project.flows[name]]
            emit = service.process.emitter(ManualTrigger("manual", "manual"), lambda _event: flows)
            await emit([make_event(number) for number in range(count)])

        await submit("tomorrow", 1000)
        await submit("retries", 10)
        await submit("work", 2)  # one runs, one waits for it

        async def are_as_they_stay() -> bool:
            states = service.process.journal.counts()[0]
            return (states.get("running"), states.get("queued"), states.get("waiting"),
                    states.get("retrying")) == (1, 1, 1000, 10)  # fmt: skip

        await eventually(are_as_they_stay)
        passed = 60.0
        due = await gauges(service, "due_runs")
        oldest = await gauges(service, "oldest_due_seconds")
        proceed.set()
    assert due == {"work": 1, "retries": 0, "tomorrow": 0}
    assert abs(oldest["work"] - 60) <= 1


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_no_number_of_distinct_values_makes_many_series(tmp_path: Path, full: bool) -> None:
    events, portion = (100_000 if full else 5_000), 1_000

    @flow(
        on=event("placed"),
        concurrency=limit(8, per=lambda each: each.data),
        metrics={"kind": label(lambda each: str(each.data), values=["1", "2"])},
    )
    async def take() -> None: ...

    async with running(tmp_path, [take]) as service:

        async def all_ended() -> bool:
            return not any(service.process.journal.counts()[0].values())

        for first in range(0, events, portion):
            placed = [
                replace(make_event(number), type="placed", source=f"/shop/{number}")
                for number in range(first, first + portion)
            ]
            await service.process.api(placed)
            await eventually(all_ended)
        text = await scraped(service)
    ended = [line for line in text.splitlines() if line.startswith("turnout_runs_total{")]
    assert sum(float(line.split()[-1]) for line in ended) == events
    assert sum(not line.startswith("#") for line in text.splitlines()) <= 2000


@flow(retry=retry(1, delay="40s", jitter=False))
async def retries_soon() -> None:
    raise ConnectionError("no answer")


async def test_a_process_is_wanted_for_what_runs_and_is_due_within_a_minute(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, [work, retries, retries_soon, paused]) as service:
        await service.process.operator.do(Pause("paused"))
        for number in range(3):
            await service.emitter([make_event(number)])

        async def are_as_they_stay() -> bool:
            states = service.process.journal.counts()[0]
            return (states.get("running"), states.get("retrying")) == (1, 6)

        await eventually(are_as_they_stay)
        await service.process.scrape.measure()
        text = service.process.metrics.render().decode()
        proceed.set()
    # One works and two are due, three are tried again in 40 s; not in an hour, and no paused one.
    assert "turnout_wanted 6.0" in text


@pytest.mark.parametrize(
    ("declared", "wanted"),
    [
        (debounce(event("saved"), "40s"), 1),  # and not once more for the run that waits for it
        (batch(event("saved"), 10, "40s"), 1),
        (batch(event("saved"), 10, "1h"), 0),
        (every("50s"), 1),
        (every("10m"), 0),
    ],
    ids=["debounce", "batch", "later batch", "timer", "later timer"],
)
async def test_a_process_is_wanted_for_windows_and_ticks_within_a_minute(
    tmp_path: Path, declared: Any, wanted: int
) -> None:
    @flow(on=declared)
    async def index() -> None: ...

    now = datetime(2026, 3, 4, 12, 1, tzinfo=UTC)
    async with running(tmp_path, [index], now=lambda: now) as service:
        await service.process.api([replace(make_event(), type="saved")])

        async def measured() -> float:
            text = await scraped(service)
            return float(text.partition("\nturnout_wanted ")[2].split()[0])

        assert await measured() == wanted


async def scraped(service: Running) -> str:
    await service.process.scrape.measure()
    return service.process.metrics.render().decode()


async def test_a_named_limit_shows_its_places_and_what_waits(tmp_path: Path) -> None:
    flows = [
        flow(name=name, concurrency=limit("db", 2))(work.function) for name in ("first", "second")
    ]
    async with running(tmp_path, flows) as service:
        for number in range(3):
            await service.emitter([make_event(number)])

        async def are_taken() -> bool:
            return service.process.journal.counts()[0].get("running", 0) == 2

        await eventually(are_taken)
        found = [await gauges(service, name) for name in ("limit_used", "limit_max", "limit_due")]
        proceed.set()
    assert found == [{"db": 2}, {"db": 2}, {"db": 4}]


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_scrape_counts_anew(tmp_path: Path) -> None:
    flows = tmp_path / "flows.py"
    flows.write_text(
        "from turnout import flow, webhook\n@flow(on=webhook('/order'))\ndef order() -> None: ...\n"
    )
    with Program(flows=flows, data=tmp_path / "data", log=tmp_path / "log").start() as program:
        program.ready()
        answer = program.ask("/metrics")
    assert answer is not None
    text = answer.body.decode()
    assert 'turnout_due_runs{flow="order"} 0.0' in text
    assert 'turnout_scheduled_runs{flow="order"} 0.0' in text
