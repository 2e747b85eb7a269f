"""APScheduler: how late an interval job's first line is: memory|sqlite PENDING EVERY SECONDS."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import UTC, datetime, timedelta

import uvloop
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler

STORE, PENDING = sys.argv[1], int(sys.argv[2])
EVERY_SECONDS, SECONDS = float(sys.argv[3]), float(sys.argv[4])
called: list[float] = []


def tick() -> None:
    called.append(time.time_ns() / 1e9)


def later() -> None:
    return None


async def main() -> None:
    stores = {"default": SQLAlchemyJobStore("sqlite:///jobs.sqlite")} if STORE == "sqlite" else {}
    scheduler = AsyncIOScheduler(jobstores=stores, timezone=UTC)
    scheduler.start(paused=True)
    for number in range(PENDING):
        due = datetime(2099, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
        scheduler.add_job(later, "date", run_date=due)
    first = time.time_ns() // 10**9 + 1
    start = datetime.fromtimestamp(first, UTC)
    scheduler.add_job(tick, "interval", seconds=EVERY_SECONDS, start_date=start)
    scheduler.resume()
    await asyncio.sleep(SECONDS + 1)
    late = sorted((at - first) % EVERY_SECONDS * 1000 for at in called)
    figures = {"p50": late[len(late) // 2], "p99": late[int(len(late) * 0.99)]}
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
