"""Spans wait for others and leave together; none is lost at a stop, and none is sent twice."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.journal_contract import NOW, ended, finish, start
from tests.support.running import eventually
from turnout.service.app import spans
from turnout.service.app.spans import SpanSender
from turnout.service.domain.errors import JournalFull
from turnout.service.domain.run import Run
from turnout.service.domain.trace_context import Sampler
from turnout.service.journal.records import ClaimedRun, EndedTrace
from turnout.service.journal.sqlite.journal import SqliteJournal, open_journal
from turnout.service.telemetry.metrics import Metrics
from turnout.service.telemetry.otlp import Exporter
from turnout.service.telemetry.trace_conventions import RUN_ID
from turnout.service.telemetry.traces import Span, trace_of_run

SAMPLER = Sampler(1.0, True)


class Taken:
    """An exporter that keeps what it is given."""

    delay_seconds, most_waiting, most_together = 60.0, 100, 50

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.refused: set[str] = set()  # a request with one of these runs is not taken

    def deliver(self, spans: Sequence[Span]) -> bool:
        if any(span.attributes.get(RUN_ID) in self.refused for span in spans):
            return False
        self.spans += spans
        return True

    def close(self) -> None: ...


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    made = await open_journal(
        tmp_path, metrics=Metrics(), max_unfinished_runs=100, min_free_bytes=0
    )
    yield made
    await made.close()


@asynccontextmanager
async def sending(journal: SqliteJournal, taken: Taken) -> AsyncIterator[SpanSender]:
    """Send spans inside the block, and stop at its end."""
    sender = SpanSender(journal, SAMPLER, cast(Exporter, taken))
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(sender.run())
        yield sender
        sender.stop()


def send_attempt(sender: SpanSender, run: ClaimedRun) -> None:
    """Send the span of an attempt that has ended, as the first of its run."""
    trace = trace_of_run(run.claim.run_id, {}, SAMPLER)
    span = Span(
        name="attempt", context=trace.within("1" * 16), parent=trace.own,
        started_at=NOW, ended_at=NOW + timedelta(seconds=1), attributes={},
    )  # fmt: skip
    sender.tracer.send(trace, run.claim.run_seq, span)
    sender.tracer.ended(run.claim.run_seq)


async def test_an_attempt_that_ends_as_the_service_stops_has_its_spans(
    journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, has_asked, is_busy = Taken(), asyncio.Event(), threading.Event()
    owed_spans = journal.owed_spans

    async def ask(*args: Any, **kwargs: Any) -> list[EndedTrace]:
        owed = await owed_spans(*args, **kwargs)
        has_asked.set()
        return owed

    def keep_busy(*_: object) -> None:
        is_busy.set()
        time.sleep(0.2)

    monkeypatch.setattr(journal, "owed_spans", ask)
    async with asyncio.TaskGroup() as tasks, sending(journal, taken) as sender:
        claimed = await start(journal)
        await finish(journal, claimed, ended())
        await has_asked.wait()  # from now on it waits for a span
        tasks.create_task(journal._call(keep_busy))
        assert await asyncio.to_thread(is_busy.wait, 5)
        send_attempt(sender, claimed)  # the journal notes only later that the run's is owed
    assert sorted(span.name for span in taken.spans) == ["attempt", "run bill"]
    assert await journal.owed_spans(limit=9, links=9) == []


async def test_a_run_that_ends_twice_within_seconds_has_one_span(journal: SqliteJournal) -> None:
    taken = Taken()
    async with sending(journal, taken) as sender:
        claimed = await start(journal)
        await finish(journal, claimed, ended())
        await journal.owe_span(claimed.claim.run_seq)
        for _ in range(2):  # an operator has had it tried again
            sender.tracer.ended(claimed.claim.run_seq)
    assert [span.name for span in taken.spans] == ["run bill"]


async def test_what_was_noted_is_not_sent_again_while_the_disk_is_full(
    journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "_ROUND_SECONDS", 0.01)
    claimed = await start(journal)
    await journal.owe_span(claimed.claim.run_seq)
    await finish(journal, claimed, ended())
    owed = await journal.owed_spans(limit=9, links=9)
    await asyncio.to_thread(journal.note_sent, [each.run for each in owed])
    sent_spans, tries = journal.sent_spans, 0

    async def full_at_first(sent: Sequence[Run]) -> None:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise JournalFull("no space left")
        await sent_spans(sent)

    async def is_recorded() -> bool:
        return await journal.owed_spans(limit=9, links=9) == []

    monkeypatch.setattr(journal, "sent_spans", full_at_first)
    taken = Taken()
    async with sending(journal, taken):
        await eventually(is_recorded)
    assert tries >= 4 and taken.spans == []


async def test_a_run_that_is_refused_does_not_keep_back_others(
    journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "_ROUND_SECONDS", 0.01)
    taken, runs = Taken(), []
    for _ in range(20):
        runs.append(await start(journal))
        await journal.owe_span(runs[-1].claim.run_seq)
        await finish(journal, runs[-1], ended())
    refused = runs[7].claim.run_id
    taken.refused.add(refused)
    others = {run.claim.run_id for run in runs} - {refused}

    async def has(sent: set[str]) -> bool:
        return {str(span.attributes[RUN_ID]) for span in taken.spans} == sent

    async with sending(journal, taken):
        await eventually(lambda: has(others))
        taken.refused.clear()
        await eventually(lambda: has({*others, refused}))
    assert len(taken.spans) == len(runs)
