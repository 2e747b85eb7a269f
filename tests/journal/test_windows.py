"""The journal on SQLite keeps the contract of windows."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

from tests.journal.test_sqlite import opened
from tests.support.journal_windows import WindowsContract
from turnout.service.journal.sqlite.journal import SqliteJournal


class TestSqliteWindows(WindowsContract):
    def open(self, folder: Path, **bounds: int) -> AbstractAsyncContextManager[SqliteJournal]:
        return opened(folder, None, **bounds)
