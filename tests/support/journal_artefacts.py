"""What every journal must do about artefacts, written against the contract.

A test module subclasses `ArtefactsContract` as it does `JournalContract`.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from turnout.service.domain.errors import ClaimLost
from turnout.service.domain.run import RunError
from turnout.service.journal.contract import Attachment, Journal
from turnout.service.journal.records import Claim, StepRecord

from .journal_contract import NOW, S, at, claim_all, ended, finish, start, step

FOREVER = {"unmatched_before": NOW, "dedupe_before": NOW, "now": at(5), "limit": 100}


def done(key: str, **more: Any) -> StepRecord:
    return step(key, finished_at=at(1), **more)


def written(journal: Journal, name: str, content: bytes, type_: str) -> Attachment:
    file = journal.stage_file(min_free_bytes=0)
    for start_at in range(0, len(content), 1000):
        file.write(content[start_at : start_at + 1000])
    return Attachment(name, type_, file, file.close())


async def staged(
    journal: Journal, name: str, content: bytes = b"content", type_: str = "text/plain"
) -> Attachment:
    return await asyncio.to_thread(written, journal, name, content, type_)


def everything(folder: Path) -> set[Path]:
    return {*folder.rglob("*")}


async def content(journal: Journal, blob: str) -> bytes:
    return b"".join(await asyncio.to_thread(list, journal.blob_chunks(blob)))


async def names(journal: Journal, run_seq: int) -> list[str]:
    return [each.name for each in await journal.artefacts(run_seq, 100)]


class ArtefactsContract:
    """Subclass and give `open`."""

    def open(self, folder: Path, **bounds: int) -> AbstractAsyncContextManager[Journal]:
        raise NotImplementedError

    async def test_an_artefact_is_recorded_with_its_step_and_found_again(
        self, tmp_path: Path
    ) -> None:
        async with self.open(tmp_path) as journal:
            run = await start(journal)
            made = await staged(journal, "a.txt", b"abc")
            assert not made.file.is_kept
            held = journal.stage_bytes(b"held")
            both = [made, Attachment("held", "text/plain", held, held.close())]
            await journal.record_artefacts(run.claim, done("make#1"), both)
            assert made.file.is_kept
        async with self.open(tmp_path) as journal:
            found, held_too = await journal.artefacts(run.claim.run_seq, 100)
            assert await content(journal, held_too.blob) == b"held"
            assert found == await asyncio.to_thread(journal.artefact, run.claim.run_seq, "a.txt")
            assert found == journal.artefact(run.claim.run_seq, "a.txt")
            assert (found.key, found.name, found.type) == ("make#1", "a.txt", "text/plain")
            assert (found.size, found.at) == (3, at(1))
            assert await content(journal, found.blob) == b"abc"
            assert [each.key for each in await journal.steps(run.claim.run_seq)] == ["make#1"]
            assert journal.artefact(run.claim.run_seq, "b.txt") is None
            assert journal.artefact(run.claim.run_seq + 1, "a.txt") is None

    async def test_the_last_step_that_attached_a_name_counts(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            run = await start(journal)
            for key, made in (("make#1", b"one"), ("make#2", b"two")):
                both = [await staged(journal, "a", made), await staged(journal, key, made)]
                await journal.record_artefacts(run.claim, done(key), both)
            found = journal.artefact(run.claim.run_seq, "a")
            assert found is not None and await content(journal, found.blob) == b"two"
            assert await names(journal, run.claim.run_seq) == ["make#1", "a", "make#2"]
            assert len(await journal.artefacts(run.claim.run_seq, 2)) == 2

    async def test_a_lost_claim_records_neither_and_leaves_no_file(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            run = await start(journal)
            size = journal.size_bytes()
            made = await staged(journal, "a", b"x" * 5000)
            stale = Claim(run.claim.run_seq, run.claim.run_id, run.claim.token + 1)
            with pytest.raises(ClaimLost):
                await journal.record_artefacts(stale, done("make#1"), [made])
            assert await names(journal, run.claim.run_seq) == []
            assert await journal.steps(run.claim.run_seq) == []
            assert journal.size_bytes() >= size + 5000
            assert await journal.prune_blobs() == 5000

    async def test_a_step_that_is_recorded_anew_has_only_what_it_attached_then(
        self, tmp_path: Path
    ) -> None:
        async with self.open(tmp_path) as journal:
            run = await start(journal)
            error = RunError("OSError", "no", "make#1")
            failed = done("make#1", state="failed", error=error)
            await journal.record_artefacts(run.claim, failed, [await staged(journal, "shot.png")])
            await finish(journal, run, ended(S.RETRYING, error=error, due_at=at(2)))
            assert await names(journal, run.claim.run_seq) == ["shot.png"]
            [again] = await claim_all(journal, [run.claim.run_seq])
            await journal.record_step(again.claim, done("make#1"))
            assert await names(journal, run.claim.run_seq) == []
            assert await journal.prune_blobs() == len(b"content")

    async def test_it_goes_with_a_retry_from_its_step(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            run = await start(journal)
            for key in ("make#1", "make#2"):
                await journal.record_artefacts(run.claim, done(key), [await staged(journal, key)])
            await finish(journal, run, ended())
            await journal.retry(run.claim.run_id, "make#2", now=at(3))
            assert await names(journal, run.claim.run_seq) == ["make#1"]

    async def test_it_goes_with_its_run_and_equal_content_with_the_last(
        self, tmp_path: Path
    ) -> None:
        async with self.open(tmp_path) as journal:
            first, second = await start(journal), await start(journal)
            for run in (first, second):
                made = await staged(journal, "a", b"x" * 5000)
                await journal.record_artefacts(run.claim, done("make#1"), [made])
            await finish(journal, first, ended())
            assert await journal.prune_blobs() == 0
            chosen: Any = {"finished_before": at(9), "failed_before": at(9), **FOREVER}
            assert await journal.prune(**chosen) > 0
            assert await journal.artefacts(first.claim.run_seq, 10) == []
            assert await journal.prune_blobs() == 0, "another run has the same content"
            await finish(journal, second, ended())
            await journal.prune(**chosen)
            assert await journal.prune_blobs() == 5000
            assert not journal.blob_path(made.blob).exists()

    async def test_what_is_discarded_and_what_a_crash_leaves_is_gone(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            run = await start(journal)
            kept = await staged(journal, "a", b"kept")
            await journal.record_artefacts(run.claim, done("make#1"), [kept])
            await asyncio.to_thread(kept.file.discard)
            assert journal.blob_path(kept.blob).exists(), "what is recorded stays"
            before = everything(tmp_path)
            dropped = await staged(journal, "b", b"dropped")
            for _ in range(2):
                await asyncio.to_thread(dropped.file.discard)
            assert everything(tmp_path) == before
            await staged(journal, "c", b"left")
            left = everything(tmp_path) - before
            assert len(left) == 1
        async with self.open(tmp_path):
            assert left.isdisjoint(everything(tmp_path))

    async def test_damaged_content_is_never_given_whole(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            run = await start(journal)
            made = await staged(journal, "a", b"content")
            await journal.record_artefacts(run.claim, done("make#1"), [made])
            path = journal.blob_path(made.blob)
            path.chmod(0o600)
            path.write_bytes(b"c0ntent")
            with pytest.raises(Exception, match="is damaged"):
                await content(journal, made.blob)
            problems = [problem async for _name, problem in journal.examine() if problem]
            assert len(problems) == 1 and "is damaged" in problems[0]

    async def test_a_large_result_and_artefacts_are_recorded_together(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:
            run = await start(journal)
            async with journal.store_blob(b"y" * 2000) as blob:
                record = replace(done("make#1"), result=None, blob=blob)
                await journal.record_artefacts(run.claim, record, [await staged(journal, "a")])
            assert await journal.prune_blobs() == 0

    async def test_a_disk_that_would_get_too_full_takes_no_more(self, tmp_path: Path) -> None:
        async with self.open(tmp_path) as journal:

            def write() -> None:
                file = journal.stage_file(min_free_bytes=2**62)
                with pytest.raises(OSError, match="less than min_free_bytes"):
                    file.write(b"x")
                file.discard()

            await asyncio.to_thread(write)
