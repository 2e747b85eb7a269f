"""Kills the program beside the record of a step: before it, nobody knows what has been done."""

from __future__ import annotations

from pathlib import Path

from tests.bench.peers import python_of
from tests.support.program import killed_once

_DIES = """
import asyncio
from turnout.service.journal.sqlite.journal import SqliteJournal

def dies(name, key_of):
    honest = getattr(SqliteJournal, name)

    async def write(self, *arguments, **named):
        is_here = key_of(*arguments) == {boundary!r}
        if is_here and not {recorded}: die()
        await honest(self, *arguments, **named)
        if is_here: die()

    def begin(self, *arguments, **named):
        return asyncio.get_running_loop().create_task(write(self, *arguments, **named))

    setattr(SqliteJournal, name, begin)

of_step = lambda claim, step, *others: f"{{step.key}} {{step.state}}"
dies("record_step", of_step)
dies("record_artefacts", of_step)
dies("record", lambda run, outcome: f"run {{outcome.state}}")
"""


def killed_at(boundary: str, *, recorded: bool = False) -> str:
    """Return sabotage: the program dies once, before it records what `boundary` names, or after.

    A boundary is a step and its state, `hand_off#1 succeeded`, or `run succeeded`.
    """
    return killed_once(_DIES.format(boundary=boundary, recorded=recorded))


def library_of(peer: str) -> Path:
    """Return where the packages of another system's environment are."""
    return next(python_of(peer).parents[1].glob("lib/*/site-packages"))


def behind_ours(peer: str) -> str:
    """Return code for a program that finds another system's packages behind its own."""
    return f"import sys; sys.path.append({str(library_of(peer))!r})\n"
