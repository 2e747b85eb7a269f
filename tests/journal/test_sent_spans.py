"""What was noted as sent is read however a power cut has left it."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.journal_contract import ended, finish, start
from turnout.service.journal.records import EndedTrace
from turnout.service.journal.sqlite.journal import SqliteJournal, open_journal
from turnout.service.telemetry.metrics import Metrics


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    made = await open_journal(
        tmp_path, metrics=Metrics(), max_unfinished_runs=100, min_free_bytes=0
    )
    yield made
    await made.close()


@pytest.fixture
async def owed(journal: SqliteJournal) -> EndedTrace:
    """A run that has ended, and whose span was noted as sent."""
    claimed = await start(journal)
    await journal.owe_span(claimed.claim.run_seq)
    await finish(journal, claimed, ended())
    (owed,) = await journal.owed_spans(limit=9, links=9)
    await asyncio.to_thread(journal.note_sent, [owed.run])
    return owed


@pytest.mark.usefixtures("owed")
async def test_a_note_that_a_power_cut_has_garbled_is_passed_over(
    tmp_path: Path, journal: SqliteJournal
) -> None:
    notes = tmp_path / "journal" / "sent-spans"
    notes.write_bytes(b"\0\0\0\n5\xff 7\n" + notes.read_bytes() + b"1 23")
    await journal.sent_spans([])
    assert await journal.owed_spans(limit=9, links=9) == []
    assert not notes.exists()


async def test_notes_that_cannot_be_read_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: SqliteJournal, owed: EndedTrace
) -> None:
    notes = tmp_path / "journal" / "sent-spans"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", refuse)
        await journal.sent_spans([])
    assert await journal.owed_spans(limit=9, links=9) == [owed]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        await journal.sent_spans([])
    assert await journal.owed_spans(limit=9, links=9) == []
    assert notes.exists()
    await journal.sent_spans([])
    assert not notes.exists()


def refuse(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.EMFILE, "Too many open files")
