"""Backups of a data folder for an operator: made, pruned, noted for the metrics, and described.

Not here: what is in a backup and how it is verified (`journal.backups`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from turnout.service.domain.errors import TurnoutError
from turnout.service.domain.run import FINISHED, RunState
from turnout.service.journal.backups import (
    Progress,
    make_backup,
    prune_backups,
    read_status,
    write_status,
)
from turnout.service.journal.records import BackupContents, BackupStatus, RestoredTo
from turnout.service.telemetry.logs import get_logger

from .documents import instant

log = get_logger("turnout.backup")

RETRY = timedelta(minutes=1)
"""After a failure the next try comes no later than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backups:
    """Makes backups of one data folder in another folder; call it from a thread."""

    data: Path
    folder: Path
    keep: int | None
    min_free_bytes: int
    now: Callable[[], datetime]
    progress: Progress

    def make(self) -> dict[str, Any]:
        """Make a backup, prune the older ones, and return its document; a failure is noted."""
        before = read_status(self.data) or BackupStatus(taken_at=None, failure=None)
        try:
            made = make_backup(
                self.data,
                self.folder,
                now=self.now,
                min_free_bytes=self.min_free_bytes,
                progress=self.progress,
            )
        except (TurnoutError, OSError) as error:
            self._note(replace(before, failure=str(error)))
            raise
        self._note(BackupStatus(taken_at=made.taken_at, failure=lacks(made)))
        pruned = [] if self.keep is None else self._prune(made.file)
        return {**contents_of(made), "pruned": [str(path) for path in pruned]}

    def _note(self, status: BackupStatus) -> None:
        if not self.data.is_dir():
            return
        try:
            write_status(self.data, status)
        except OSError as error:  # as on a full disk: the backup itself is no worse for it
            log.warning("backup.not_noted", error=str(error))

    def _prune(self, newest: Path) -> list[Path]:
        assert self.keep is not None
        try:
            return prune_backups(self.data, self.folder, keep=self.keep, newest=newest)
        except OSError as error:  # the next backup tries again
            log.warning("backup.not_pruned", error=str(error))
            return []

    def keep_making(
        self,
        every: timedelta,
        *,
        wait: Callable[[float], bool],
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        """Make and tell one at each interval until `wait`, which waits seconds, returns true."""
        while True:
            began = self.now()
            pause = every
            try:
                made = self.make()
            except (TurnoutError, OSError) as error:
                pause = min(every, RETRY)
                log.error("backup.failed", error=str(error), data=str(self.data))  # noqa: TRY400  it says all
            else:
                log.info("backup.made", file=made["file"], bytes=made["bytes"])
                if made["lacks"] is not None:
                    log.error("backup.lacks", error=made["lacks"], file=made["file"])
                tell(made)
            left = pause - (self.now() - began)
            if wait(max(left.total_seconds(), 0)):
                return


def lacks(contents: BackupContents) -> str | None:
    """Return what a backup could not take, because the journal has lost it; None if nothing."""
    if not contents.lost:
        return None
    return (
        f"{len(contents.lost)} recorded results were missing or damaged in the journal, "
        f"{contents.lost[0]} the first; all else is in the backup, and `turnout doctor` names them"
    )


def contents_of(contents: BackupContents) -> dict[str, Any]:
    """Return the document of a verified backup."""
    return {
        "file": str(contents.file),
        "taken_at": instant(contents.taken_at),
        "verified": True,
        "bytes": contents.bytes,
        "files": contents.files,
        "lacks": lacks(contents),
        "event_count": contents.events,
        "program": contents.program,
        "journal_version": contents.version,
        "states": [{"state": state, "count": count} for state, count in contents.runs.items()],
        "unfinished": sum(
            count for state, count in contents.runs.items() if RunState(state) not in FINISHED
        ),
    }


def restore_of(contents: BackupContents, restored: RestoredTo | None) -> dict[str, Any]:
    """Return the document of a backup that is restored, or only looked at."""
    to = None if restored is None else str(restored.data)
    aside = None if restored is None else restored.moved_to
    return {
        **contents_of(contents),
        "restored_to": to,
        "moved_to": None if aside is None else str(aside),
        "triggers": _triggers(contents),
    }


_BY_KIND: Mapping[str, str] = {
    "kafka": "reads the records after its stored offsets by itself",
    "files": "reads what is in its folder by itself; put files back that came later and were moved",
    "cron": "ticks on by itself; missed= decides about ticks since then",
    "every": "ticks on by itself; missed= decides about ticks since then",
    "at": "ticks by itself if it had not",
    "event": "what emits its events does so when its run runs again",
}
_SENT = "senders must send again what was answered later; what is known already starts no run"


def _triggers(contents: BackupContents) -> list[dict[str, Any]]:
    """Return for each trigger from which instant on what it brought is not in the backup."""
    names = sorted({*contents.last_events, *contents.positions} - {""})
    return [
        {
            "name": name,
            "since": instant(contents.taken_at),
            "last_event_at": instant(contents.last_events.get(name)),
            "positions": contents.positions.get(name, 0),
            "advice": _advice(name, is_read=contents.positions.get(name, 0) > 0),
        }
        for name in names
    ]


def _advice(name: str, *, is_read: bool) -> str:
    """Return who brings again what came after a backup; a name of an author's own tells less."""
    known = _BY_KIND.get(name.partition(":")[0])
    if known is not None:
        return known
    return "goes on by itself from its stored positions" if is_read else _SENT
