"""Many open windows cost a process nothing: no memory, no time at the start, no work while idle."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path

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


def measured(program: Program) -> tuple[float, float, float]:
    """Return the seconds to be ready, the MiB in memory, and the CPU share while idle."""
    ready = program.start().ready(60)
    time.sleep(1)  # what a start leaves to do
    before, at = program.process().cpu_times(), time.monotonic()
    time.sleep(2)
    after, passed = program.process().cpu_times(), time.monotonic() - at
    busy = (after.user + after.system - before.user - before.system) / passed
    return ready, program.rss_mib(), busy


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
        with_many = measured(program)
        assert program.metrics("turnout_runs")['state="scheduled"'] == count
        until(lambda: program.stop() == 0, 20, "it stops")
    say(f"{count} windows: ready {with_many[0]:.2f} s (without {without[0]:.2f})")
    say(f"memory {with_many[1]:.0f} MiB ({without[1]:.0f})")
    say(f"idle {with_many[2]:.1%} ({without[2]:.1%})")
    assert with_many[0] - without[0] <= 1  # a second or less without, unless the machine is busy
    assert with_many[1] - without[1] <= 20
    assert with_many[2] - without[2] <= 0.05
