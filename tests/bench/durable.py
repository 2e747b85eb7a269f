"""(f) Durable runs of one and three steps, one at a time and a hundred at once.

Beside a bare pipeline that commits as often: the event with its run, each step, the outcome; with
group commit where many are at once. Both on uvloop, on their own journal, `synchronous=FULL`. The
peers run as many steps, each in an environment of its own.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack
from functools import partial
from itertools import count
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
from .measure import Size, Spread, Unavailable, interleave, ratio
from .peers import measured, services
from .references import CODE_VERSION, INSERT_EVENT, INSERT_RUN
from .report import Table

ORDER = BODY.decode()
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


DBOS, DBOS_POSTGRES, PREFECT = "DBOS on SQLite", "DBOS on PostgreSQL", "Prefect 3, on SQLite"
DURABLE = {PREFECT: "no: states are reported, results are not kept by default"}
PeerRun = Callable[[int, int], Mapping[str, float]]  # steps, at once


def run(size: Size) -> list[Table]:
    """Measure turnout, the bare pipeline, and the peers that can be had."""
    table = Table(
        "f", "durable runs of 1 and 3 steps",
        ("what", "each step durable before the next?", "steps", "at once", "runs/s",
         "x bare pipeline", "turnout is x times this", "CPU µs each"),
    )  # fmt: skip
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="turnout-bench-")))
        peers = _peers(folder, stack, table.lost)
        for steps, made in ((1, one_step), (3, three_steps)):
            for together in (1, 100):
                _compare(table, size, steps, made, together, peers)
    table.notes += [
        "all keep a history of runs and steps; a turnout run ends when"
        " its outcome is committed, a DBOS run when its handle has the result, a Prefect run when"
        " its flow has returned",
        "turnout runs with `concurrency=128` here, not its default of 64, which 100 would exceed",
        "without HTTP; in one process with its client; peers in a process of their own, with fewer"
        " runs a round (20 or 100; Prefect 5 or 20, in 2 rounds); CPU is of that process alone,"
        " without the PostgreSQL or the Prefect server",
    ]
    return [table]


def _peers(folder: Path, stack: ExitStack, lost: dict[str, str]) -> dict[str, PeerRun]:
    """Return how to run each peer, with the servers they need started."""
    folder.chmod(0o755)  # PostgreSQL runs as somebody else
    journals = (f"sqlite:///{folder}/dbos-{number}.sqlite" for number in count())
    peers: dict[str, PeerRun] = {DBOS: lambda *asked: _run_dbos(next(journals), *asked)}
    starters: dict[str, tuple[Callable[[Path], AbstractContextManager[Any]], Any]] = {
        DBOS_POSTGRES: (services.postgres, _run_dbos),
        PREFECT: (services.prefect, _run_prefect),
    }
    for name, (server, run_peer) in starters.items():
        try:
            peers[name] = partial(run_peer, stack.enter_context(server(folder / server.__name__)))
        except Unavailable as error:
            lost[name] = str(error)
    return peers


def _run_dbos(url: str, steps: int, together: int) -> Mapping[str, float]:
    runs = 20 if together == 1 else 100
    return measured("dbos", "dbos_runs", *map(str, (steps, runs, together)), url, ORDER)


def _run_prefect(env: Mapping[str, str], steps: int, together: int) -> Mapping[str, float]:
    runs = 5 if together == 1 else 20
    return measured("prefect", "prefect_runs", *map(str, (steps, runs, together)), ORDER, env=env)


def _compare(
    table: Table,
    size: Size,
    steps: int,
    made: Flow[..., Any],
    together: int,
    peers: Mapping[str, PeerRun],
) -> None:
    runs = (200 if together == 1 else 4000) // (2 if size.quick else 1)
    measures: dict[str, Callable[[], Mapping[str, float]]] = {
        "bare commits": partial(_on_loop, partial(_bare, steps), runs, together),
        "turnout": partial(_on_loop, partial(_turnout, made), runs, together),
    }
    asked = {
        name: partial(run_peer, steps, together)
        for name, run_peer in peers.items()
        if name not in table.lost
    }
    seldom = {name: asked.pop(name) for name in (PREFECT,) if name in asked}
    found = interleave(size.rounds, measures | asked, table.lost)
    found |= interleave(1 if size.quick else 2, seldom, table.lost)
    bare, ours = found["bare commits"]["rate"], found["turnout"]["rate"]
    for name, figures in found.items():
        rate = figures["rate"]
        table.add(
            name, DURABLE.get(name, "yes"), str(steps), str(together), Spread.of(rate),
            ratio(rate, bare), ratio(ours, rate), Spread.of(figures["cpu"]),
        )  # fmt: skip
    if steps == 3 and together == 1:
        table.at_most("serial 3 steps: time x the bare pipeline", ratio(bare, ours).median, 1.5)
    if steps == 3 and together == 100:
        for name, bound in ((DBOS, 100), (PREFECT, 1000)):
            if name in found:
                times = ratio(ours, found[name]["rate"]).median
                table.at_least(f"3 steps, 100 at once: x {name}", times, bound)


Pipeline = Callable[[Path, AsyncExitStack], Awaitable[Callable[[], Awaitable[None]]]]


def _on_loop(pipeline: Pipeline, runs: int, together: int) -> Mapping[str, float]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(pipeline, runs, together))


async def _measure(pipeline: Pipeline, runs: int, together: int) -> Mapping[str, float]:
    with tempfile.TemporaryDirectory(prefix="turnout-bench-") as place:
        async with AsyncExitStack() as stack:
            once = await pipeline(Path(place), stack)
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
            return {"rate": runs / elapsed, "cpu": cpu / runs * 1e6}


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
