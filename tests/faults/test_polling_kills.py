"""Polling with a cursor in `current().state`: kill -9 neither skips a page nor doubles one."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from tests.support.program import Program, turnout, until

FLOWS = Path(__file__).parent / "flows" / "polling.py"

APART = """
import asyncio
from turnout.service.journal.sqlite import flow_state
from turnout.service.journal.sqlite.journal import SqliteJournal

honest = SqliteJournal.record

async def apart(self, run, outcome, **named):
    moved, outcome.state_write = outcome.state_write, None
    cancelled = await honest(self, run, outcome, **named)
    if moved is not None:
        await asyncio.sleep(0.03)
        await self._call(
            lambda connection, _: flow_state.write(connection, run.flow, run.claim.run_id, moved, 0)
        )
    return cancelled

SqliteJournal.record = apart
"""
"""Breaks the promise: the cursor moves after the run's success, in a transaction of its own."""


def pages_of(data: Path) -> list[int]:
    """Return the pages that runs have taken, in the order in which they succeeded."""
    listed = turnout(
        "runs", "--flow", "poll", "--state", "succeeded", "--all", "--json", "--data", data
    )
    assert listed.returncode == 0, listed.stderr
    runs = [json.loads(line) for line in listed.stdout.splitlines()]
    runs.sort(key=lambda run: (run["finished_at"], run["id"]))
    return [run["result"] for run in runs]


def poll_under_kills(folder: Path, kills: int, sabotage: str = "") -> list[int]:
    """Serve the flow, kill the process again and again, stop it cleanly; return the pages."""
    program = Program(
        flows=FLOWS, data=folder / "data", log=folder / "log", sabotage=sabotage,
        env={"TURNOUT_LOG_FORMAT": "json"},
    )  # fmt: skip
    with program:
        for _ in range(kills):
            program.start()
            program.ready()
            time.sleep(0.3 + random.random() * 0.4)  # a kill comes whenever it comes
            program.kill()
        program.start()
        program.ready()
        done = len(pages_of(program.data))
        until(lambda: len(pages_of(program.data)) > done, 30, "another page")
        program.stop()
        program.check_journal()
    return pages_of(program.data)


@pytest.mark.timeout(180)
def test_no_page_is_skipped_or_taken_twice_by_kills(tmp_path: Path) -> None:
    pages = poll_under_kills(tmp_path, 5)
    assert pages == list(range(len(pages)))
    state = turnout("state", "poll", "--json", "--data", tmp_path / "data")
    assert json.loads(state.stdout)["value"] == len(pages)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_no_page_is_skipped_or_taken_twice_by_a_hundred_kills(tmp_path: Path) -> None:
    pages = poll_under_kills(tmp_path, 100)
    assert pages == list(range(len(pages)))


@pytest.mark.full
@pytest.mark.timeout(180)
def test_a_cursor_that_moves_apart_from_the_success_doubles_a_page(tmp_path: Path) -> None:
    pages = poll_under_kills(tmp_path, 4, APART)
    assert pages != list(range(len(pages)))
