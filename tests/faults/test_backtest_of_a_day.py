"""A day of the real program is recorded, and a backtest of the same code says what happened.

Webhooks, typed events, files, records of Kafka and ticks come at once, to flows with every rule and
every window; in the middle the program is stopped and started again.
"""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Say
from tests.support.brokers import Broker
from tests.support.program import Program, turnout, until
from turnout.service.project.loader import loading

from .records import Feeder, Group
from .test_everything import FLOWS, Load, counted, program_for

MORE = """

from turnout import every

def third(event: Event) -> int:
    return event.data["number"] % 3

async def slow(record: dict[str, Any]) -> int:
    await asyncio.sleep(0.003)
    return int(record["number"])

@flow(on=every("130ms"), mode="skip", timeout="1m")
async def ticking() -> None:
    await asyncio.sleep(0.2)

@flow(on=batch(every("100ms"), 7, "1s"))
async def ticks(events: list[Event]) -> int:
    return len(events)

@flow(on=RECORDS, key=third, mode="skip", timeout="1m")
async def free(record: dict[str, Any]) -> int:
    return await slow(record)

@flow(on=RECORDS, key=third, mode="replace")
async def replaced(record: dict[str, Any]) -> int:
    return await slow(record)

@flow(on=RECORDS, key=third, mode="latest", concurrency=limit(1))
async def held(record: dict[str, Any]) -> int:
    return await slow(record)
"""

pytestmark = pytest.mark.timeout(3600)


def record_a_day(kafka: Broker, program: Program, group: Group, load: Load) -> None:
    """Let events come from everywhere, until as many are accepted as are wanted."""
    feeder = Feeder(broker=kafka, topic=group.topic, pace=100, most=load.wanted // 4)
    program.start().ready(60)
    with load.running(), feeder.running():
        until(lambda: len(load.accepted) > load.wanted / 2, 3600, "half of all events")
        assert program.stop(60) == 0
        program.start().ready(60)
        until(lambda: load.is_enough, 3600, "all events")
        until(lambda: len(load.dropped) >= load.wanted / 20, 3600, "all files")
    until(lambda: not group.unread_by(program), 600, "all records")
    of_files = "events WHERE trigger LIKE 'files:%'"
    until(lambda: counted(program, of_files) >= len(load.dropped), 90, "files")
    load.finish()
    still = "windows WHERE state = 'open' AND flow <> 'ticks'"
    until(lambda: not counted(program, still), 90, "all closed")
    assert program.stop(60) == 0


def backtest(program: Program, flow: str) -> dict[str, Any]:
    """Return what `turnout backtest` says of the journal of a program, and of its own code."""
    done = turnout(
        "backtest", flow, "--file", program.flows, "--data", program.data, "--json",
        env=program.env, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def differences(found: dict[str, Any]) -> list[Any]:
    """Return the first differences, of events and of windows."""
    windows = found["windows"] or {"differences": []}
    return [*found["differences"][:3], *windows["differences"][:3]]


@pytest.mark.full
def test_of_unchanged_code_a_backtest_says_exactly_what_happened(
    kafka: Broker, tmp_path: Path, seed: int, full: bool, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice, group = random.Random(seed), Group.on(kafka, partitions=2)
    with program_for(group, tmp_path / "service") as program:
        program.flows = tmp_path / "flows.py"
        program.flows.write_text(FLOWS.read_text() + MORE)
        wanted = 5_000 if full else 300
        load = Load(program.port, tmp_path / "service" / "inbox", dice, wanted, 0.003)
        record_a_day(kafka, program, group, load)
    for name, value in program.env.items():
        monkeypatch.setenv(name, value)
    with loading([program.flows]) as project, ThreadPoolExecutor(2) as pool:
        asked = [flow.name for flow in project.flows.values() if flow.triggers]
        found = dict(zip(asked, pool.map(lambda flow: backtest(program, flow), asked), strict=True))
    for flow, each in found.items():
        say(f"{flow}: {each['did']}, {(each['windows'] or {}).get('did')}")
    assert {flow: told for flow, each in found.items() if (told := differences(each))} == {}
    assert sum(each["events"] for each in found.values()) > wanted
    assert min(each["events"] for each in found.values()) > 0
