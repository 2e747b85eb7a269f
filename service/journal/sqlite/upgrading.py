"""Upgrades a journal while no service runs, or says what an upgrade takes."""

from __future__ import annotations

from pathlib import Path

from turnout.service.journal.records import UpgradePlan

from .connection import open_any_version, open_for_writing, usable
from .files import FILE_NAME, journal_folder
from .lock import FolderLock
from .migrations import Progress, plan_upgrade


def read_upgrade_plan(data: Path, *, min_free_bytes: int) -> UpgradePlan:
    """Return what brings the journal of a data folder up to date; reads only.

    Raises `SetupError` where there is no journal, or one of a newer turnout.
    """
    folder = journal_folder(data)
    connection, _ = open_any_version(folder)
    try:
        return plan_upgrade(connection, folder / FILE_NAME, min_free_bytes=min_free_bytes)
    finally:
        connection.close()


def upgrade(data: Path, *, min_free_bytes: int, progress: Progress) -> None:
    """Bring the journal of a data folder up to date, after a snapshot of it.

    Raises `SetupError` while another process uses it, and where there is too little space.
    """
    with usable(data):
        lock = FolderLock(data)
        try:
            open_for_writing(
                data, synchronous="full", min_free_bytes=min_free_bytes, progress=progress
            ).close()
        finally:
            lock.release()
