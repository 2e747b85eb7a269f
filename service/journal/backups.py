"""Backups of a journal: the one place that chooses the database they are made of."""

from __future__ import annotations

from .sqlite.backup_status import read_status, write_status
from .sqlite.backups import Progress, make_backup, prune_backups, read_backup
from .sqlite.restoring import restore_backup

__all__ = [
    "Progress",
    "make_backup",
    "prune_backups",
    "read_backup",
    "read_status",
    "restore_backup",
    "write_status",
]
