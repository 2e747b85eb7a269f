"""What was noted as sent is read however a power cut has left it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.support.journal_contract import ended, finish, start
from turnout.service.journal.open import open_journal
from turnout.service.telemetry.metrics import Metrics


async def test_a_note_that_a_power_cut_has_garbled_is_passed_over(tmp_path: Path) -> None:
    journal = await open_journal(
        tmp_path, metrics=Metrics(), max_unfinished_runs=100, min_free_bytes=0
    )
    try:
        claimed = await start(journal)
        await journal.owe_span(claimed.claim.run_seq)
        await finish(journal, claimed, ended())
        (owed,) = await journal.owed_spans(limit=9, links=9)
        await asyncio.to_thread(journal.note_sent, [owed.run])
        notes = tmp_path / "journal" / "sent-spans"
        notes.write_bytes(b"\0\0\0\n5\xff 7\n" + notes.read_bytes() + b"1 23")
        await journal.sent_spans([])
        assert await journal.owed_spans(limit=9, links=9) == []
        assert not notes.exists()
        await asyncio.to_thread(notes.mkdir)  # in its place is what can be neither read nor deleted
        await asyncio.to_thread(journal.note_sent, [owed.run])
        await journal.sent_spans([owed.run])
    finally:
        await journal.close()
