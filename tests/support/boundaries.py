"""Kills the program between a step and its record: what has been done then is not known."""

from __future__ import annotations

from pathlib import Path

from tests.bench.peers import python_of
from tests.support.program import killed_once

_DIES = """
from turnout.service.journal.sqlite.journal import SqliteJournal

honest_step, honest_run = SqliteJournal.record_step, SqliteJournal.record
honest_artefacts = SqliteJournal.record_artefacts

async def record_artefacts(self, claim, step, *more, **named):
    if {boundary!r} == f"{{step.key}} {{step.state}}": die()
    await honest_artefacts(self, claim, step, *more, **named)

def record_step(self, claim, step):
    if {boundary!r} == f"{{step.key}} {{step.state}}": die()
    return honest_step(self, claim, step)

async def record(self, run, outcome, **named):
    if {boundary!r} == f"run {{outcome.state}}": die()
    await honest_run(self, run, outcome, **named)

SqliteJournal.record_step, SqliteJournal.record = record_step, record
SqliteJournal.record_artefacts = record_artefacts
"""


def killed_at(boundary: str) -> str:
    """Return sabotage: the program dies once, before it records what `boundary` names.

    A boundary is a step and its state, `hand_off#1 succeeded`, or `run succeeded`.
    """
    return killed_once(_DIES.format(boundary=boundary))


def library_of(peer: str) -> Path:
    """Return where the packages of another system's environment are."""
    return next(python_of(peer).parents[1].glob("lib/*/site-packages"))


def behind_ours(peer: str) -> str:
    """Return code for a program that finds another system's packages behind its own."""
    return f"import sys; sys.path.append({str(library_of(peer))!r})\n"
