"""(h) What an event costs as things grow: rows in the journal, flows, and runs that are queued.

A journal of so many finished runs, or of so many queued ones, is written through the journal's own
way in; finished ones are then marked so. The cost is that of an event accepted, run and recorded,
100 at once, in rounds that alternate between the sizes. `--huge` goes to ten million rows.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import uvloop

from turnout.service.domain.event import mint_id
from turnout.service.domain.run import RunState
from turnout.service.domain.units import utc_now
from turnout.service.journal.open import open_journal
from turnout.service.journal.records import Entry, NewRun
from turnout.service.journal.sqlite.connection import open_for_writing
from turnout.service.telemetry.metrics import Metrics

from . import flows
from .measure import Size, Spread, interleave, ratio
from .pipelines import new_event, on_loop, turnout
from .queue_to_result import bill
from .report import Table
from .servers import Fleet, Served

BATCH = 1000
BATCHES_AT_ONCE = 4
Figures = Mapping[str, list[float]]
MONTH_MICROSECONDS = 30 * 86_400 * 10**6


def run(size: Size) -> list[Table]:
    """Measure growth in each direction."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="turnout-bench-")))
        tables = [_rows(folder, size)]
        fleet = Fleet(folder, stack)
        return [*tables, _flows(fleet, size), _queued(fleet, size)]


# ---------------------------------------------------------------- rows


def _rows(folder: Path, size: Size) -> Table:
    sizes = [10_000, 20_000 if size.quick else 1_000_000]
    if size.huge:
        sizes[-1] = 10_000_000
    table = Table(
        "h1 huge" if size.huge else "h1", "cost against rows in the journal",
        ("ids", "finished runs there", "runs/s", "time x smallest", "CPU µs each",
         "CPU x smallest", "s to open", "GiB"),
    )  # fmt: skip
    runs = 1000 if size.quick else 4000
    for text, minted, bound in (
        ("minted", True, 1.3), ("random, of the sender", False, 2.5),
    ):  # fmt: skip
        journals = {}
        for rows in sizes:
            journals[rows] = folder / f"{'minted' if minted else 'random'}-{rows}"
            fill(journals[rows], rows, minted=minted)
            finish(journals[rows])
        found = interleave(
            size.rounds,
            {
                f"{rows:,}": partial(on_loop, partial(turnout, bill, minted=minted), runs, 100, at)
                for rows, at in journals.items()
            },
        )
        least = found[f"{sizes[0]:,}"]
        for rows, figures in zip(sizes, found.values(), strict=True):
            _row(table, text, f"{rows:,}", figures, least, journals[rows])
        last, what = found[f"{sizes[-1]:,}"], f"at {sizes[-1]:,} rows x at {sizes[0]:,}, {text}"
        table.at_most(f"time {what}", ratio(least["rate"], last["rate"]).median, bound)
        table.at_most(f"CPU {what}", ratio(last["cpu"], least["cpu"]).median, bound)
        if minted:
            _retention(table, size, runs, journals[sizes[-1]], least)
        for at in journals.values():
            shutil.rmtree(at)
    if not size.huge:
        table.notes.append("ten million rows, kept apart: `--only h --huge`")
    return table


def _retention(table: Table, size: Size, runs: int, journal: Path, least: Figures) -> None:
    """The same while what is past its time is pruned without a pause; the service pauses 30 s."""
    finish(journal, ago=MONTH_MICROSECONDS)
    pipeline = partial(turnout, bill, pruning=True)
    figures = interleave(
        1 if size.quick else 3, {"": partial(on_loop, pipeline, runs, 100, journal)}
    )[""]
    _row(
        table, "minted, pruned all the while", "the same, past their time", figures, least, journal
    )


def _row(
    table: Table,
    ids: str,
    rows: str,
    figures: Figures,
    least: Figures,
    journal: Path,
) -> None:
    gibibytes = sum(one.stat().st_size for one in journal.rglob("*") if one.is_file()) / 2**30
    table.add(
        ids, rows, Spread.of(figures["rate"]), ratio(least["rate"], figures["rate"]),
        Spread.of(figures["cpu"]), ratio(figures["cpu"], least["cpu"]),
        Spread.of(figures["opened"]), gibibytes,
    )  # fmt: skip


def fill(journal: Path, rows: int, *, minted: bool = True, flow: str = "bill") -> None:
    """Write so many events with a queued run each."""
    journal.mkdir(exist_ok=True)

    async def write() -> None:
        opened = await open_journal(
            journal, metrics=Metrics(), synchronous="normal", max_unfinished_runs=10**9,
            min_free_bytes=0,
        )  # fmt: skip
        sizes = iter([BATCH] * (rows // BATCH) + [rows % BATCH] * bool(rows % BATCH))

        async def writer() -> None:
            for count in sizes:
                entries = [
                    Entry(
                        event=new_event(minted=minted),
                        runs=[NewRun(id=mint_id(), flow=flow, state=RunState.QUEUED)],
                    )
                    for _ in range(count)
                ]
                await opened.append(entries, now=utc_now())

        async with asyncio.TaskGroup() as group:
            for _ in range(BATCHES_AT_ONCE):
                group.create_task(writer())
        await opened.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(write())


def finish(journal: Path, *, ago: int = 0) -> None:
    """Mark every run as succeeded, so many microseconds ago."""
    connection = open_for_writing(journal, synchronous="normal")
    at = time.time_ns() // 1000 - ago
    last = int(str(connection.execute("SELECT max(seq) FROM runs").get))
    for start in range(0, last + 1, 100_000):
        connection.execute(
            "UPDATE runs SET state = 'succeeded', attempts = 1, token = 1, started_at = ?1,"
            " finished_at = ?1, result = x'6E756C6C' WHERE seq >= ?2 AND seq < ?2 + 100000",
            (at, start),
        )
    connection.wal_checkpoint(mode=3)  # truncate: what is measured later is not this
    connection.close()


# ---------------------------------------------------------------- flows and queued runs


def _flows(fleet: Fleet, size: Size) -> Table:
    def another(number: int) -> str:
        return (
            f'\n@flow(on=webhook("/orders/{number}"))\n'
            f"async def bill{number}(order: dict) -> None:\n    return None\n"
        )

    many = flows.FREE + "".join(map(another, range(1, 500)))
    served = {"1": fleet.turnout("flows-1", flows.FREE), "500": fleet.turnout("flows-500", many)}
    return _compare("h2", "cost against the number of flows", "flows", served, size)


def _queued(fleet: Fleet, size: Size) -> Table:
    served: dict[str, Served] = {}
    for count in (1, 20_000 if size.quick else 1_000_000):
        served[f"{count:,}"] = fleet.turnout(
            f"queued-{count}", flows.FREE + WAITING,
            env={"TURNOUT_MAX_UNFINISHED_RUNS": "10000000"},
            prepare=partial(fill, rows=count, flow="wait"),
        )  # fmt: skip
    return _compare("h3", "cost against runs that are queued", "queued, another flow", served, size)


def _compare(letter: str, title: str, what: str, served: dict[str, Served], size: Size) -> Table:
    """Load each in turn; the first is what the others are compared with."""
    table = Table(
        letter, title,
        (what, "requests/s", "CPU µs each", "CPU x the first", "s to start", "MiB"),
    )  # fmt: skip
    found = interleave(
        size.rounds,
        {
            name: lambda one=one: one.load(seconds=size.seconds)[1]  # type: ignore[misc]
            for name, one in served.items()
        },
    )
    first, last = served
    for name, one in served.items():
        figures = found[name]
        assert one.program is not None
        table.add(
            name, Spread.of(figures["rate"]), Spread.of(figures["cpu"]),
            ratio(figures["cpu"], found[first]["cpu"]), one.start_seconds, one.program.rss_mib(),
        )  # fmt: skip
    growth = ratio(found[last]["cpu"], found[first]["cpu"]).median
    table.at_most(f"CPU with {last} x with {first}", growth, 1.3)
    return table


WAITING = """
import asyncio
from turnout import event, limit
@flow(on=event("wait"), concurrency=limit(1))
async def wait(order: dict) -> None:
    await asyncio.sleep(36_000)
"""
