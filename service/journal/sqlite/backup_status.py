"""How the backups of a data folder go, in a file beside the journal that the service shows.

Whoever makes backups writes it; a service whose backups are not made by turnout has none.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import orjson

from turnout.service.journal.records import BackupStatus

from .files import write_whole

_NAME = "backup-status.json"


def write_status(data: Path, status: BackupStatus) -> None:
    """Write how backups go, whole or not at all; not synced: the next backup writes it again."""
    taken_at = None if status.taken_at is None else status.taken_at.isoformat()
    content = orjson.dumps({"taken_at": taken_at, "failure": status.failure})
    write_whole(data / _NAME, content, synced=False)


def read_status(data: Path) -> BackupStatus | None:
    """Return how backups go; None where none was made, or the file cannot be read."""
    try:
        found = orjson.loads((data / _NAME).read_bytes())
        taken_at = found["taken_at"]
        return BackupStatus(
            taken_at=None if taken_at is None else datetime.fromisoformat(taken_at),
            failure=found["failure"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
