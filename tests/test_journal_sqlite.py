"""The contract on SQLite, and what only a database file can do wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from turnout.service.journal.sqlite import SqliteJournal, open_journal
from turnout.service.metrics import Metrics

from .journal_contract import JournalContract


@asynccontextmanager
async def opened(folder: Path, **bounds: int) -> AsyncIterator[SqliteJournal]:
    chosen = {"max_unfinished_runs": 10_000, "min_free_bytes": 0} | bounds
    journal = await open_journal(folder / "data", metrics=Metrics(), **chosen)
    try:
        yield journal
    finally:
        await journal.close()


class TestSqliteJournal(JournalContract):
    open = staticmethod(opened)
