"""What is known of backups: what one of them holds, and how the last ones went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupContents:
    """What a backup holds: everything that was committed at `taken_at`.

    `files` are large results and artefacts, `bytes` the size of the whole. `last_events` says when
    the last event of each trigger was accepted, of the newest 50,000, and `positions` how many
    positions each trigger has stored. `lost` names the results whose files were missing or damaged
    in the journal when the backup was made: all else is in it.
    """

    file: Path
    taken_at: datetime
    program: str
    version: int
    bytes: int
    files: int
    events: int
    runs: Mapping[str, int]
    last_events: Mapping[str, datetime]
    positions: Mapping[str, int]
    lost: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupStatus:
    """How backups of a data folder go: when the last was taken, and what is wrong since then.

    A `failure` is why a later one failed, or what the last one lacks.
    """

    taken_at: datetime | None
    failure: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredTo:
    """Where a backup was restored, and where the journal that was there is now."""

    data: Path
    moved_to: Path | None
