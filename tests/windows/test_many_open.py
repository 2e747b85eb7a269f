"""Many open windows cost a process nothing: no memory, no time at the start, no work while idle."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import Say
from tests.support.program import Program, until
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.windows.debounce import debounce
from turnout.service.domain.windows.firing import Firing
from turnout.service.domain.windows.window import WindowSettings
from turnout.service.journal.open import open_journal
from turnout.service.journal.records import Entry, NewMember
from turnout.service.telemetry.metrics import Metrics
from turnout.triggers.webhook import webhook

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FLOWS = """
from turnout import debounce, flow, webhook

@flow(on=debounce(webhook("/page"), "2h", per=lambda event: event.data["key"]))
async def index(page: dict) -> None: ...
"""


async def open_windows(data: Path, count: int) -> None:
    """Open so many windows, each with one event, the way `append` does."""
    settings = debounce(webhook("/page"), "2h").settings
    journal = await open_journal(
        data, metrics=Metrics(), synchronous="normal", max_unfinished_runs=1_000_000,
        min_free_bytes=0,
    )  # fmt: skip
    now = datetime.now(UTC)
    try:
        for start in range(0, count, 1000):
            entries = [
                Entry(event=event_of(number, now), members=[member(settings, str(number))])
                for number in range(start, min(start + 1000, count))
            ]
            await journal.append(entries, trigger="webhook:/page", now=now)
    finally:
        await journal.close()


def event_of(number: int, now: datetime) -> Event:
    return Event(
        id=mint_id(), source="test", type="page", time=now, trigger="webhook:/page",
        body=f'{{"key": "{number}"}}'.encode(), minted=True,
    )  # fmt: skip


def member(settings: WindowSettings, key: str) -> NewMember:
    return NewMember(
        flow="index", settings=settings, part="webhook:/page", key=key, firing=Firing()
    )  # fmt: skip


class Measured(NamedTuple):
    """Seconds to be ready, of the clock and of the processor; MiB; the CPU share while idle."""

    ready: float
    spent: float
    memory: float
    idle: float


def measured(program: Program) -> Measured:
    ready = program.start().ready(60)
    spent = _spent(program)
    time.sleep(1)  # what a start leaves to do
    before, at = _spent(program), time.monotonic()
    time.sleep(2)
    idle = (_spent(program) - before) / (time.monotonic() - at)
    return Measured(ready, spent, program.rss_mib(), idle)


def _spent(program: Program) -> float:
    times = program.process().cpu_times()
    return float(times.user + times.system)


@pytest.mark.full
def test_open_windows_cost_no_memory_no_start_and_no_idle_time(
    tmp_path: Path, full: bool, say: Say
) -> None:
    count = 100_000 if full else 3_000
    flows = tmp_path / "flows.py"
    flows.write_text(FLOWS)
    log = tmp_path / "log"
    with Program(flows=flows, data=tmp_path / "none", log=log, spawned=True) as program:
        without = measured(program)
    asyncio.run(open_windows(tmp_path / "many", count))
    with Program(flows=flows, data=tmp_path / "many", log=log, spawned=True) as program:
        many = measured(program)
        assert program.metrics("turnout_runs")['state="scheduled"'] == count
        until(lambda: program.stop() == 0, 20, "it stops")
    say(f"{count} windows: ready {many.ready:.2f} s (without {without.ready:.2f})")
    say(f"processor {many.spent:.2f} s ({without.spent:.2f})")
    say(f"memory {many.memory:.0f} MiB ({without.memory:.0f})")
    say(f"idle {many.idle:.1%} ({without.idle:.1%})")
    assert many.spent <= max(2, without.spent + 0.5)  # a busy machine starts the empty one late too
    assert many.memory - without.memory <= 20
    assert many.idle - without.idle <= 0.05
