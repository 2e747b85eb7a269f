"""A service that is killed at a boundary: something has been done, and is not recorded yet."""

from __future__ import annotations

from .program import killed_once

_DIES = """
from turnout.service.journal.sqlite.journal import SqliteJournal

honest_step, honest_run = SqliteJournal.record_step, SqliteJournal.record

async def record_step(self, claim, step):
    if {boundary!r} == f"{{step.key}} {{step.state}}": die()
    await honest_step(self, claim, step)

async def record(self, run, outcome, **named):
    if {boundary!r} == f"run {{outcome.state}}": die()
    await honest_run(self, run, outcome, **named)

SqliteJournal.record_step, SqliteJournal.record = record_step, record
"""


def killed_at(boundary: str) -> str:
    """Return sabotage that kills a service once, before it records what `boundary` names.

    That is a step or the run, and its state: `"charge#1 succeeded"`, `"run succeeded"`. The
    program's variable `MARKER` names the file that says that it has been killed.
    """
    return killed_once(_DIES.format(boundary=boundary))
