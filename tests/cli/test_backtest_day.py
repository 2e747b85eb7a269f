"""Backtest over the journal of the real program, of a day with all triggers and all windows."""

from __future__ import annotations

import asyncio
import random
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.conftest import Say
from tests.faults.records import Feeder, Group
from tests.faults.test_everything import FLOWS, Load, counted, program_for
from tests.support.brokers import Broker
from tests.support.program import Program, until
from turnout.service.cli.session import open_journal_reader
from turnout.service.domain.units import utc_now
from turnout.service.operate.backtest import Kept, Report, backtest
from turnout.service.project.loader import loading
from turnout.service.settings import Settings

pytestmark = pytest.mark.timeout(600)

LONG = timedelta(days=7)


async def reports(program: Program, since: datetime) -> list[Report]:
    """Ask every flow about what the journal has."""
    settings, until_ = Settings(data=program.data, min_free_bytes=0), utc_now()
    with loading([FLOWS]) as project:
        async with open_journal_reader(settings) as reader:
            return [
                await backtest(
                    reader, project, name, since=since, until=until_, kept=Kept(LONG, LONG)
                )
                for name in project.flows
            ]


def test_of_a_day_with_all_triggers_and_windows_it_says_what_happened(
    kafka: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, full: bool, say: Say
) -> None:
    group, began = Group.on(kafka, partitions=2), utc_now()
    program = program_for(group, tmp_path / "service")
    wanted = 3_000 if full else 160
    load = Load(
        program.port, tmp_path / "service" / "inbox", random.Random(seed), wanted, pause=0.02
    )
    with program:
        program.start().ready(60)
        with load.running(), Feeder(broker=kafka, topic=group.topic, pace=20).running():
            until(lambda: len(load.accepted) > wanted / 2, 300, "half of the events")
            assert program.stop(60) == 0
            program.start().ready(60)
            until(lambda: load.is_enough, 300, "all events accepted")
        load.finish()
        until(lambda: not counted(program, "windows WHERE state = 'open'"), 90, "all closed")
        program.quiet(60)
        assert program.stop(60) == 0
    for name, value in program.env.items():
        monkeypatch.setenv(name, value)
    found = asyncio.run(reports(program, began))
    events = sum(report.events for report in found)
    say(f"{events} questions, {sum(report.different for report in found)} differ")
    for report in found:
        assert report.different == 0, (report.flow, [each.as_dict() for each in report.differences])
        if report.windows is not None:
            assert report.windows.different == 0, (report.flow, report.windows.as_dict())
            assert report.windows.did == report.windows.would, report.flow
    kinds = {report.windows.kind for report in found if report.windows is not None}
    assert kinds == {"debounce", "batch", "count", "sequence", "all_of", "absent"}
    triggers = {name.partition(":")[0] for report in found for name in report.triggers}
    assert triggers >= {"webhook", "event", "files", "kafka"}
