"""The journal on SQLite keeps the contract of artefacts."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

from tests.journal.test_sqlite import opened
from tests.support.journal_artefacts import ArtefactsContract
from turnout.service.journal.sqlite.journal import SqliteJournal


class TestSqliteArtefacts(ArtefactsContract):
    def open(self, folder: Path, **bounds: int) -> AbstractAsyncContextManager[SqliteJournal]:
        return opened(folder, None, **bounds)
