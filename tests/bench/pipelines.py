"""Pipelines measured in one process with their client: turnout's, and bare commits beside it.

All run on uvloop; turnout and `bare` on a journal of their own with `synchronous=FULL`. `bare`
commits as often as turnout promises to: the event with its run, each step, the outcome; with group
commit where many are at once. `raw` is asyncio alone.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any
from uuid import uuid4

import orjson
import uvloop

from turnout.service.app.process import ManualTrigger, Process
from turnout.service.app.serve import tune_garbage_collector
from turnout.service.domain.clock import WallClock
from turnout.service.domain.event import Event, mint_id
from turnout.service.domain.flow import Flow
from turnout.service.domain.units import utc_now
from turnout.service.journal.contract import Journal
from turnout.service.journal.open import open_journal
from turnout.service.operate.maintenance import Maintenance
from turnout.service.project import Project
from turnout.service.settings import Settings
from turnout.service.telemetry.metrics import Metrics

from .load import BODY
from .references import CODE_VERSION, INSERT_EVENT, INSERT_RUN
from .stored import bare_journal

STEP = (
    "INSERT INTO steps (run_seq, key, task, state, tries, started_at, finished_at, encoding,"
    " result) VALUES (?, ?, 'add', 'succeeded', 1, ?, ?, 'json', ?)"
)
OUTCOME = (
    "UPDATE runs SET state = 'succeeded', attempts = 1, finished_at = ?, result = ? WHERE seq = ?"
)


Pipeline = Callable[[Path, AsyncExitStack], Awaitable[Callable[[], Awaitable[None]]]]


def on_loop(
    pipeline: Pipeline, runs: int, together: int, folder: Path | None = None
) -> Mapping[str, float]:
    """Measure a pipeline on a journal in `folder`, or a fresh one."""
    tune_garbage_collector()  # as `turnout serve` does
    with ExitStack() as stack:
        if folder is None:
            made = stack.enter_context(tempfile.TemporaryDirectory(prefix="turnout-bench-"))
            folder = Path(made)
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        return runner.run(_measure(pipeline, runs, together, folder))


async def _measure(
    pipeline: Pipeline, runs: int, together: int, folder: Path
) -> Mapping[str, float]:
    async with AsyncExitStack() as stack:
        opening = time.perf_counter()
        once = await pipeline(folder, stack)
        opened = time.perf_counter() - opening
        left = iter(range(runs))

        async def worker() -> None:
            for _ in left:
                await once()

        await once()
        cpu, started = time.process_time(), time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(together):
                group.create_task(worker())
        elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
        return {"rate": runs / elapsed, "cpu": cpu / runs * 1e6, "opened": opened}


def _none_died(journal: Journal) -> None:
    assert not journal.counts()[1], "a run of the bench became a dead letter"


def new_event(*, minted: bool = True) -> Event:
    """Return an event with the body every bench sends, its id minted or as senders give it."""
    return Event(
        id=mint_id() if minted else str(uuid4()), source="/bench", type="bench", time=utc_now(),
        body=BODY, datacontenttype="application/json", trigger="bench", minted=minted,
    )  # fmt: skip


async def turnout(
    made: Flow[..., Any],
    folder: Path,
    stack: AsyncExitStack,
    *,
    minted: bool = True,
    pruning: bool = False,
) -> Callable[[], Awaitable[None]]:
    """Run `made` for an event at each call; `pruning` does the maintenance all the while."""
    chosen: dict[str, Any] = {"concurrency": 128}
    settings = Settings(data=folder, **chosen)
    metrics = Metrics()
    journal = await open_journal(
        folder, metrics=metrics, max_unfinished_runs=10**6, min_free_bytes=0
    )
    stack.push_async_callback(journal.close)
    tasks = await stack.enter_async_context(asyncio.TaskGroup())
    process = Process(settings, Project.of([made]), journal, metrics, tasks)
    stack.push_async_callback(process.resources.stop)
    await process.start()
    stack.push_async_callback(process.stop)
    stack.callback(_none_died, journal)
    emit = process.emitter(ManualTrigger("bench", "bench"), lambda _event: (made,))
    if pruning:
        maintenance = Maintenance(
            journal,
            process.after_run_actions,
            settings,
            metrics,
            now=utc_now,
            clock=WallClock(utc_now),
        )
        stack.callback(tasks.create_task(_prune(maintenance)).cancel)

    async def once() -> None:
        (receipt,) = await emit([new_event(minted=minted)])
        assert await emit.result(receipt, 60) is not None

    return once


async def _prune(maintenance: Maintenance) -> None:
    while True:
        await maintenance.run_once()


async def raw(steps: int, folder: Path, stack: AsyncExitStack) -> Callable[[], Awaitable[None]]:
    """Run a task of the loop for each call, that awaits each step; keeps nothing."""

    async def add(number: int) -> int:
        return number + 1

    async def work(body: bytes) -> int:
        orjson.loads(body)
        value = 0
        for _ in range(steps):
            value = await add(value)
        return value

    async def once() -> None:
        await asyncio.get_running_loop().create_task(work(BODY))

    return once


async def bare(steps: int, folder: Path, stack: AsyncExitStack) -> Callable[[], Awaitable[None]]:
    writer = _Writer(folder)
    stack.callback(writer.close)
    last = 0

    async def once() -> None:
        nonlocal last
        last += 1
        seq, at = last, time.time_ns() // 1000
        event = (seq, mint_id(), "/bench", at, at, BODY, "{}")
        await writer.write(
            (INSERT_EVENT, event), (INSERT_RUN, (seq, mint_id(), seq, at, CODE_VERSION))
        )
        value = 0
        for place in range(steps):
            value += 1
            await writer.write((STEP, (seq, f"add#{place}", at, at, orjson.dumps(value))))
        await writer.write((OUTCOME, (at, orjson.dumps(value), seq)))

    return once


class _Writer:
    """One thread that writes what arrives together in one transaction."""

    def __init__(self, folder: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = bare_journal(folder)
        self._connection.wal_autocheckpoint(4000)
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def write(self, *statements: tuple[str, tuple[Any, ...]]) -> asyncio.Future[None]:
        future = self._loop.create_future()
        self._queue.put((statements, future))
        return future

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            batch = [job]
            try:
                while (more := self._queue.get_nowait()) is not None:
                    batch.append(more)
            except Empty:
                pass
            self._connection.execute("BEGIN IMMEDIATE")
            for statements, _ in batch:
                for text, values in statements:
                    self._connection.execute(text, values)
            self._connection.execute("COMMIT")
            self._loop.call_soon_threadsafe(_resolve, [future for _, future in batch])


def _resolve(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        future.set_result(None)
