"""The program on a copy of a journal that an earlier version wrote.

The wall clock is set back to the instant at which the journal was written, and on from there.
"""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import apsw

from tests.data.journals import make
from tests.support.injected_clock import InjectedClock
from tests.support.program import Program, until
from turnout.service.domain.units import utc_now
from turnout.service.journal.sqlite.files import FILE_NAME, journal_folder
from turnout.service.journal.sqlite.values import instant


class OldService:
    """The program on a copy of an old journal, at a time of the test's own."""

    def __init__(self, journal: Path, folder: Path) -> None:
        data = folder / "data"
        copy_journal(journal, data)
        shutil.copy(journal.parent / "flows.py", folder)
        self.made_at = last_recorded(data)
        self.clock = InjectedClock(folder)
        self.program = Program(
            flows=folder / "flows.py",
            data=data,
            log=folder / "log",
            env={**make.SETTINGS, **self.clock.env},
        )

    def set_clock(self, after: timedelta) -> None:
        """Let it be so long after the journal was made."""
        ago = utc_now() - self.made_at - after
        seconds = ago.total_seconds()
        self.clock.set(f"{'-' if seconds > 0 else '+'}{abs(seconds):.0f}s")

    def until_ended(self, run_id: str) -> dict[str, Any]:
        """Wait for the end of a run."""

        def ended() -> dict[str, Any] | None:
            found: dict[str, Any] = self.program.api(f"/runs/{run_id}")
            return found if found["finished_at"] else None

        return until(ended, 20, f"the end of run {run_id}")


def copy_journal(journal: Path, data: Path) -> None:
    """Copy an old journal to where a program may use it."""
    shutil.copytree(journal, data, copy_function=shutil.copyfile)
    for path in (data, *data.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)


def last_recorded(data: Path) -> datetime:
    """Return when the last run was accepted."""
    connection = apsw.Connection(str(journal_folder(data) / FILE_NAME))
    try:
        return instant(connection.execute("SELECT max(queued_at) FROM runs").get)
    finally:
        connection.close()
