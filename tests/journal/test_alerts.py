"""The journal on SQLite keeps the contract of alerts."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

from tests.journal.test_sqlite import opened
from tests.support.journal_alerts import AlertsContract
from turnout.service.journal.sqlite.journal import SqliteJournal


class TestSqliteAlerts(AlertsContract):
    def open(self, folder: Path, **bounds: int) -> AbstractAsyncContextManager[SqliteJournal]:
        return opened(folder, None, **bounds)
