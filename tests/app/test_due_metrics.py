"""What waits is seen in the metrics: runs that could start, since when, and those of later."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.support.program import Program
from tests.support.running import Running, eventually, make_event, running
from turnout import flow, limit, retry
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
