"""What a served journal holds, read while it is served: the judge of what was lost or doubled."""

from __future__ import annotations

from pathlib import Path

import apsw

from turnout.service.journal.sqlite.connection import open_for_writing
from turnout.service.journal.sqlite.files import FILE_NAME, journal_folder


def bare_journal(data: Path) -> apsw.Connection:
    """Open a journal that no service uses, made if missing; each commit is synced to disk."""
    journal_folder(data).mkdir(mode=0o700, parents=True, exist_ok=True)
    return open_for_writing(data, synchronous="full")


def ends(data: Path) -> dict[str, tuple[float, int]]:
    """Return, by its id, when each succeeded run finished and how many runs its event has."""
    journal = apsw.Connection(
        str(journal_folder(data) / FILE_NAME), flags=apsw.SQLITE_OPEN_READONLY
    )
    try:
        return {
            str(run): (float(finished) / 1e6, int(runs))
            for run, finished, runs in journal.execute(
                "SELECT id, finished_at, count(*) OVER (PARTITION BY event_seq) FROM runs"
                " WHERE state = 'succeeded'"
            )
        }
    finally:
        journal.close()
