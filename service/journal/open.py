"""Opens the journal of a data folder for writing: the one place that chooses the database.

Reading alone needs less: a command that only reads uses `sqlite.reader.open_reader`, which leaves
out the writer and the metrics. Not here: what a journal promises (`contract`).
"""

from __future__ import annotations

from .sqlite.journal import SqliteJournal as OpenJournal
from .sqlite.journal import open_journal

__all__ = ["OpenJournal", "open_journal"]
