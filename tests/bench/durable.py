"""(f) Durable runs of one and three steps, one at a time and a hundred at once.

Beside a bare pipeline that commits as often: the event with its run, each step, the outcome; with
group commit where many are at once. Both on uvloop, on their own journal, `synchronous=FULL`. The
DBOS row is its workflow with as many steps on SQLite, in an environment of its own.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import orjson
import uvloop

from turnout.handlers.flow import flow
from turnout.handlers.task import task
from turnout.service.dispatch.waiters import Waiters
from turnout.service.event import Event, mint_id
from turnout.service.flow import Flow
from turnout.service.journal.connection import open_for_writing
from turnout.service.journal.contract import Journal
from turnout.service.journal.sqlite import open_journal
from turnout.service.metrics import Metrics
from turnout.service.process import ApiTrigger, Process
from turnout.service.project import Project
from turnout.service.settings import Settings
from turnout.service.units import utc_now

from .load import BODY
from .measure import Size, Spread, interleave, ratio
from .references import CODE_VERSION, INSERT_EVENT, INSERT_RUN
from .report import Table

DBOS = "dbos==3.4.0"
PEERS = Path(__file__).parent / ".peers"
SCRIPT = Path(__file__).parent / "dbos_runs.py"
STEP = (
    "INSERT INTO steps (run_seq, key, task, state, tries, started_at, finished_at, encoding,"
    " result) VALUES (?, ?, 'add', 'succeeded', 1, ?, ?, 'json', ?)"
)
OUTCOME = (
    "UPDATE runs SET state = 'succeeded', attempts = 1, finished_at = ?, result = ? WHERE seq = ?"
)


@task
async def add(number: int) -> int:
    return number + 1


@flow
async def one_step(order: dict[str, Any]) -> int:
    return await add(0)


@flow
async def three_steps(order: dict[str, Any]) -> int:
    return await add(await add(await add(0)))


def run(size: Size) -> list[Table]:
    """Measure turnout, the bare pipeline, and DBOS where it can be installed."""
    table = Table(
        "f", "durable runs of 1 and 3 steps",
        ("what", "steps", "at once", "runs/s", "x bare pipeline", "x DBOS", "CPU µs each"),
    )  # fmt: skip
    dbos = _dbos()
    for steps, made in ((1, one_step), (3, three_steps)):
        for together in (1, 100):
            _compare(table, size, steps, made, together, dbos)
    table.notes += [
        "a turnout run ends when its outcome is committed, a DBOS run when"
        " its handle has the result",
        "turnout runs with `concurrency=128` here, not its default of 64, which 100 would exceed",
        "without HTTP; in one process with its client; DBOS in a process of its own, with fewer"
        " runs a round (20 one at a time, 100 at once)",
    ]
    return [table]


def _compare(
    table: Table, size: Size, steps: int, made: Flow[..., Any], together: int, dbos: Path | None
) -> None:
    count = (200 if together == 1 else 4000) // (2 if size.quick else 1)
    measures: dict[str, Callable[[], Mapping[str, float]]] = {
        "bare": partial(_on_loop, partial(_bare, steps), count, together),
        "turnout": partial(_on_loop, partial(_turnout, made), count, together),
    }
    if dbos is not None:
        measures["DBOS"] = partial(_run_dbos, dbos, steps, 20 if together == 1 else 100, together)
    found = interleave(size.rounds, measures)
    names = {"bare": "bare commits", "turnout": "turnout", "DBOS": "DBOS on SQLite"}
    bare, ours = found["bare"]["rate"], found["turnout"]["rate"]
    peer = found["DBOS"]["rate"] if dbos is not None else None
    for name, figures in found.items():
        rate = figures["rate"]
        table.add(
            names[name], str(steps), str(together), Spread.of(rate), ratio(rate, bare),
            None if peer is None else ratio(rate, peer), Spread.of(figures["cpu"]),
        )  # fmt: skip
    if steps == 3 and together == 1:
        table.at_most("serial 3 steps: time x the bare pipeline", ratio(bare, ours).median, 1.5)
    if steps == 3 and together == 100 and peer is not None:
        table.at_least("3 steps, 100 at once: x DBOS on SQLite", ratio(ours, peer).median, 100)


Pipeline = Callable[[Path, AsyncExitStack], Awaitable[Callable[[], Awaitable[None]]]]


def _on_loop(pipeline: Pipeline, count: int, together: int) -> Mapping[str, float]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(pipeline, count, together))


async def _measure(pipeline: Pipeline, count: int, together: int) -> Mapping[str, float]:
    with tempfile.TemporaryDirectory(prefix="turnout-bench-") as place:
        async with AsyncExitStack() as stack:
            once = await pipeline(Path(place), stack)
            left = iter(range(count))

            async def worker() -> None:
                for _ in left:
                    await once()

            await once()
            cpu, started = time.process_time(), time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(together):
                    group.create_task(worker())
            elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
            return {"rate": count / elapsed, "cpu": cpu / count * 1e6}


def _none_died(journal: Journal) -> None:
    assert not journal.counts()[1], "a run of the bench became a dead letter"


class _Ends(Waiters):
    """Tells of recorded ends without reading the run back, which the bare pipeline does not."""

    def __init__(self, journal: Journal, limit: int) -> None:
        super().__init__(journal, limit)
        self._futures: dict[str, asyncio.Future[None]] = {}

    def finished(self, run_id: str) -> None:
        future = self._future(run_id)
        if not future.done():
            future.set_result(None)

    async def end(self, run_id: str) -> None:
        await self._future(run_id)
        del self._futures[run_id]

    def _future(self, run_id: str) -> asyncio.Future[None]:
        future = self._futures.get(run_id)
        if future is None:
            future = self._futures[run_id] = asyncio.get_running_loop().create_future()
        return future


async def _turnout(
    made: Flow[..., Any], folder: Path, stack: AsyncExitStack
) -> Callable[[], Awaitable[None]]:
    chosen: dict[str, Any] = {"concurrency": 128}
    settings = Settings(data=folder, **chosen)
    metrics = Metrics()
    journal = await open_journal(
        folder, metrics=metrics, max_unfinished_runs=10**6, min_free_bytes=0
    )
    stack.push_async_callback(journal.close)
    tasks = await stack.enter_async_context(asyncio.TaskGroup())
    process = Process(settings, Project.of([made]), journal, metrics, tasks)
    process.waiters = ends = _Ends(journal, settings.max_waiters)
    stack.push_async_callback(process.resources.stop)
    await process.start()
    stack.push_async_callback(process.stop)
    stack.callback(_none_died, journal)
    emit = process.emitter(ApiTrigger("bench", "bench"), lambda _event: (made,))

    async def once() -> None:
        event = Event(
            id=mint_id(), source="/bench", type="bench", time=utc_now(), body=BODY,
            datacontenttype="application/json", trigger="bench", minted=True,
        )  # fmt: skip
        (receipt,) = await emit([event])
        await ends.end(receipt.runs[0])

    return once


async def _bare(steps: int, folder: Path, stack: AsyncExitStack) -> Callable[[], Awaitable[None]]:
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
        self._connection = open_for_writing(folder, synchronous="full")
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


def _dbos() -> Path | None:
    """Return the interpreter of DBOS's own environment, made if missing; None if it cannot be."""
    place = PEERS / "dbos"
    python = place / "bin" / "python"
    try:
        if not python.exists():
            venv.create(place, with_pip=True)
        installed = [str(python), "-c", "import dbos"]
        if subprocess.run(installed, capture_output=True, check=False).returncode:
            subprocess.run([str(python), "-m", "pip", "-q", "install", DBOS], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"no DBOS here: {error}\n")
        return None
    return python


def _run_dbos(python: Path, steps: int, count: int, together: int) -> Mapping[str, float]:
    with tempfile.TemporaryDirectory(prefix="turnout-bench-") as place:
        done = subprocess.run(
            [str(python), str(SCRIPT), str(steps), str(count), str(together), place, BODY.decode()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures
