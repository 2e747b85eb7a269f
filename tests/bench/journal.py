"""How fast the journal is, beside a bare loop that writes the same rows with the same driver.

Run `python -m tests.bench.journal [--events N]`. One table: append then record (two commits an
event) at 1, 64, 512 and 4096 concurrent callers, append alone, and the rate of a bare loop that
puts as many events into one transaction as there are callers, with no futures, no checks, no
thread. The ratio is the number to compare between machines.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TypeAlias

import uvloop

from turnout.service.event import Event, mint_id
from turnout.service.journal.connection import open_for_writing
from turnout.service.journal.contract import Claim, Entry, NewRun
from turnout.service.journal.sqlite import SqliteJournal, open_journal
from turnout.service.metrics import Metrics
from turnout.service.run import Outcome, RunState

BODY = b'{"order":"%s"}' % (b"x" * 280)
NOW = datetime(2025, 1, 1, tzinfo=UTC)
Work: TypeAlias = Callable[[SqliteJournal, Entry], Awaitable[None]]
OUTCOME = Outcome(state=RunState.SUCCEEDED, result=b"null")
CALLERS = (1, 64, 512, 4096)


def entry() -> Entry:
    event = Event(
        id=mint_id(), source="/hooks/orders", type="turnout.webhook", time=NOW, body=BODY,
        trigger="webhook:/orders", minted=True, datacontenttype="application/json",
        headers={"content-type": "application/json", "user-agent": "bench"},
    )  # fmt: skip
    return Entry(event=event, runs=[NewRun(id=mint_id(), flow="bill", state=RunState.RUNNING)])


async def append(journal: SqliteJournal, ready: Entry) -> None:
    await journal.append([ready], now=NOW)


async def append_and_record(journal: SqliteJournal, ready: Entry) -> None:
    appended = (await journal.append([ready], now=NOW))[0]
    run = ready.runs[0]
    claim = Claim(
        run_seq=run.seq, run_id=run.id, flow=run.flow, event_seq=appended.event_seq,
        event=ready.event, token=1, attempt=1, crashes=0, replay=0, order_key=None,
        limit_key=None, due_at=NOW,
    )  # fmt: skip
    await journal.record(claim, OUTCOME, started_at=NOW, now=NOW)


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


def measure_bare(entries: list[Entry], together: int, folder: Path, *, record: bool) -> float:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=50_000, help="with one caller, a fiftieth")
    parser.add_argument("--asyncio", action="store_true", help="the stock loop, not uvloop")
    chosen = parser.parse_args()
    factory = None if chosen.asyncio else uvloop.new_event_loop
    sys.stdout.write(
        f"{'work':18} {'callers':>7} {'events/s':>10} {'bare/s':>10} {'ratio':>6} {'loop µs':>8}\n"
    )
    with asyncio.Runner(loop_factory=factory) as runner, tempfile.TemporaryDirectory() as place:
        folders = (Path(place) / str(number) for number in count())
        for work, record in ((append, False), (append_and_record, True)):
            for callers in CALLERS:
                entries = [entry() for _ in range(chosen.events // (50 if callers == 1 else 1))]
                gc.collect()
                gc.freeze()  # the entries are the harness's, not the journal's garbage
                bare = measure_bare(entries, callers, next(folders), record=record)
                rate, used = runner.run(measure(work, entries, callers, next(folders)))
                sys.stdout.write(
                    f"{work.__name__:18} {callers:10} {rate:10,.0f} {bare:10,.0f}"
                    f" {rate / bare:10.2f} {used:10.1f}\n"
                )


if __name__ == "__main__":
    main()
