"""(e) How late a timer's run reaches its first line: idle, and with 5,000 others pending.

Lateness is the flow's first line against the instant that was due. The tick, its run and its
position are on disk before the run starts. Beside it a bare `loop.call_at`, which keeps nothing,
and APScheduler, with its jobs in memory and in SQLite.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import uvloop

from tests.support.program import Program, until

from . import flows, stamps
from .load import post
from .measure import Size, Spread, interleave, percentile
from .peers import measured
from .report import Table
from .servers import Fleet

PENDING = 5_000
EVERY_SECONDS = 0.1
START_SECONDS = 1.0  # what comes with a start is over by then
Late = Mapping[str, float]


def run(size: Size) -> list[Table]:
    """Measure turnout's timers and others."""
    table = Table(
        "e", "timer due → first line of its run", ("what", "pending", "kept?", "p50 ms", "p99 ms")
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="turnout-bench-")))
        fleet = Fleet(folder, stack)
        seconds = 3.0 if size.quick else 12.0  # 120 ticks: their p99 is not the worst
        rows: dict[str, tuple[str, str, str, Callable[[], Late]]] = {}

        def ours(name: str, pending: str, timers: int, sleepers: int) -> None:
            program = _prepare(fleet, folder, name, timers, sleepers)
            kept = "tick, run, position"
            rows[name] = ("turnout", pending, kept, partial(_late, program, seconds))

        ours("idle", "0", 0, 0)
        ours("timers", f"{PENDING:,} timers", PENDING, 0)
        ours("sleepers", f"{PENDING:,} runs in sleep()", 0, PENDING)
        rows["bare"] = ("loop.call_at on uvloop", "0", "nothing", partial(_bare, seconds))
        for store, kept in (("memory", "nothing"), ("sqlite", "jobs, no runs")):
            for pending in (0, PENDING):
                rows[f"{store} {pending}"] = (
                    f"APScheduler, jobs in {store}", f"{pending:,}", kept,
                    partial(measured, "apscheduler", "apscheduler_lateness", store, str(pending),
                            str(EVERY_SECONDS), str(seconds)),
                )  # fmt: skip
        measures = {name: row[3] for name, row in rows.items()}
        seldom = {name: measures.pop(name) for name in (f"sqlite {PENDING}",)}  # slow to set up
        found = interleave(size.rounds, measures, table.lost)
        found |= interleave(1, seldom, table.lost)
        for name, figures in found.items():
            p50, p99 = Spread.of(figures["p50"]), Spread.of(figures["p99"])
            table.add(*rows[name][:3], p50, p99)
        for name, text in (("idle", "idle"), ("timers", f"{PENDING:,} pending")):
            table.at_most(f"p99 ms, {text}", Spread.of(found[name]["p99"]).median, 5)
    table.notes.append(f"one tick each {EVERY_SECONDS:g} s, for {seconds:g} s a round")
    return [table]


def _prepare(fleet: Fleet, folder: Path, name: str, timers: int, sleepers: int) -> Program:
    """Return a program that was served until so many of its runs sleep, and stopped again."""
    env = {"BENCH_STAMPS": str(folder / f"{name}.stamps"), "BENCH_TIMERS": str(timers)}
    served = fleet.turnout(name, flows.TICKING, env=env)
    program = served.program
    assert program is not None
    while program.metrics("turnout_runs").get('state="waiting"', 0) < sleepers:
        post(served.url, seconds=1)
    program.stop()
    return program


def _late(program: Program, seconds: float) -> Late:
    """Serve it alone: others would tick at the same instants."""
    program.start().ready()
    path = Path(program.env["BENCH_STAMPS"])
    time.sleep(START_SECONDS)
    before = stamps.read(path).keys()
    wanted = int(seconds / EVERY_SECONDS)
    until(lambda: len(stamps.read(path)) >= len(before) + wanted, seconds + 30, "ticks")
    late = [(at - float(due)) * 1000 for due, at in stamps.read(path).items() if due not in before]
    return {"p50": percentile(late, 0.5), "p99": percentile(late, 0.99)}


def _bare(seconds: float) -> Late:
    async def wait() -> list[float]:
        loop, late = asyncio.get_running_loop(), []
        for _ in range(int(seconds / EVERY_SECONDS)):
            due = (time.time_ns() // int(EVERY_SECONDS * 1e9) + 1) * EVERY_SECONDS
            reached = loop.create_future()
            loop.call_at(loop.time() + due - time.time_ns() / 1e9, reached.set_result, None)
            await reached
            late.append((time.time_ns() / 1e9 - due) * 1000)
        return late

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        late = runner.run(wait())
    return {"p50": percentile(late, 0.5), "p99": percentile(late, 0.99)}
