"""What a served journal holds, read while it is served: the judge of what was lost or doubled."""

from __future__ import annotations

from pathlib import Path

import apsw

from turnout.service.journal.sqlite.files import FILE_NAME, journal_folder


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
