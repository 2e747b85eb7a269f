"""(r) How fast the journal is, beside raw SQLite that writes the same rows with the same driver.

The raw loop puts as many events into one transaction as there are callers, with no futures, no
checks and no thread: what the disk and SQLite allow.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeAlias

import uvloop

from turnout.service.domain.event import mint_id
from turnout.service.domain.run import Outcome, RunState
from turnout.service.journal.open import OpenJournal, open_journal
from turnout.service.journal.records import Claim, ClaimedRun, Entry, NewRun
from turnout.service.journal.sqlite.connection import open_for_writing
from turnout.service.telemetry.metrics import Metrics

from .load import BODY
from .measure import Size, Spread, interleave, ratio
from .pipelines import new_event
from .report import Table

NOW = datetime(2025, 1, 1, tzinfo=UTC)
Work: TypeAlias = Callable[[OpenJournal, Entry], Awaitable[None]]
OUTCOME = Outcome(state=RunState.SUCCEEDED, result=b"null")
CALLERS = (1, 64, 512, 4096)


def run(size: Size) -> list[Table]:
    """Measure appending alone, and with the outcome recorded after it."""
    table = Table(
        "r", "the journal beside raw SQLite, the same rows",
        ("what", "callers at once", "journal, events/s", "raw, events/s", "x raw",
         "loop thread, µs each"),
    )  # fmt: skip
    events = 4_000 if size.quick else 10_000
    with (
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        tempfile.TemporaryDirectory(prefix="turnout-bench-") as place,
    ):
        folders = (Path(place) / str(number) for number in count())

        def once(work: Work, callers: int, record: bool) -> Mapping[str, float]:
            entries = [entry() for _ in range(events // (20 if callers == 1 else 1))]
            gc.collect()
            gc.freeze()  # the entries are the harness's, not the journal's garbage
            raw = measure_raw(entries, callers, next(folders), record=record)
            rate, used = runner.run(measure(work, entries, callers, next(folders)))
            gc.unfreeze()
            return {"raw": raw, "rate": rate, "loop": used}

        for text, work, record in (
            ("event and run", append, False),
            ("event and run, then the outcome", append_and_record, True),
        ):
            for callers in CALLERS:
                measures = {"": partial(once, work, callers, record)}
                found = interleave(size.rounds, measures)[""]
                table.add(
                    text, f"{callers:,}", Spread.of(found["rate"]), Spread.of(found["raw"]),
                    ratio(found["rate"], found["raw"]), Spread.of(found["loop"]),
                )  # fmt: skip
    return [table]


def entry() -> Entry:
    run = NewRun(id=mint_id(), flow="bill", state=RunState.RUNNING)
    return Entry(event=new_event(), runs=[run])


async def append(journal: OpenJournal, ready: Entry) -> None:
    await journal.append([ready], now=NOW)


async def append_and_record(journal: OpenJournal, ready: Entry) -> None:
    appended = (await journal.append([ready], now=NOW))[0]
    run = ready.runs[0]
    claimed = ClaimedRun(
        claim=Claim(run.seq, run.id, 1), flow=run.flow, event_seq=appended.event_seq,
        event=ready.event, attempt=1, crashes=0, replay=0, order_key=None,
        keys=None, due_at=NOW,
    )  # fmt: skip
    await journal.record(claimed, OUTCOME, started_at=NOW, now=NOW)


async def measure(
    work: Work, entries: list[Entry], callers: int, folder: Path
) -> tuple[float, float]:
    """Return events per second and the loop thread's processor time per event, in µs."""
    journal = await open_journal(
        folder, metrics=Metrics(), max_unfinished_runs=10**9, min_free_bytes=0
    )
    waiting = iter(entries)

    async def caller() -> None:
        for ready in waiting:
            await work(journal, ready)

    started, used = time.perf_counter(), time.thread_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    elapsed, used = time.perf_counter() - started, time.thread_time() - used
    await journal.close()
    return len(entries) / elapsed, used / len(entries) * 1e6


INSERT_EVENT = (
    "INSERT INTO events (seq, id, source, type, tenant, trigger, time, accepted_at, body, details)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
INSERT_RUN = (
    "INSERT INTO runs (seq, id, event_seq, flow, state, token, queued_at, started_at)"
    " VALUES (?, ?, ?, ?, 'running', 1, ?, ?)"
)
FINISH = (
    "UPDATE runs SET state = 'succeeded', attempts = 1, finished_at = ?, result = ?"
    " WHERE seq = ? AND token = 1 AND state = 'running'"
)
AT = 1_735_689_600_000_000
DETAILS = (
    '{"datacontenttype":"application/json",'
    '"headers":{"content-type":"application/json","user-agent":"bench"},"minted":true}'
)
REST_OF_EVENT = (
    "/hooks/orders", "turnout.webhook", "default", "webhook:/orders", AT, AT, BODY, DETAILS
)  # fmt: skip


def measure_raw(entries: list[Entry], together: int, folder: Path, *, record: bool) -> float:
    """Return events per second with `together` events to a transaction, outcomes in the next."""
    folder.mkdir()
    connection = open_for_writing(folder, synchronous="full")
    connection.wal_autocheckpoint(4000)
    started = time.perf_counter()
    for first in range(0, len(entries), together):
        part = list(enumerate(entries[first : first + together], first + 1))
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            INSERT_EVENT, [(seq, made.event.id, *REST_OF_EVENT) for seq, made in part]
        )
        connection.executemany(
            INSERT_RUN, [(seq, made.runs[0].id, seq, "bill", AT, AT) for seq, made in part]
        )
        connection.execute("COMMIT")
        if record:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(FINISH, [(AT, b"null", seq) for seq, _ in part])
            connection.execute("COMMIT")
    elapsed = time.perf_counter() - started
    connection.close()
    return len(entries) / elapsed
