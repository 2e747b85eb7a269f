"""(i) Twenty thousand POSTs in one burst: how long they wait, what memory they take, what is lost.

All are due at the same instant, on as many connections as the client opens (512); a request's
latency counts from that instant. Afterwards every answered run must have ended, once.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.program import Program

from . import flows, stored
from .measure import Size, Spread
from .openloop import ask
from .report import Table
from .servers import HOOK, Fleet

AT_ONCE_PER_SECOND = 10_000_000.0


def run(size: Size) -> list[Table]:
    """Measure the burst on a fresh service each round."""
    posts = 2_000 if size.quick else 20_000
    table = Table(
        "i", f"{posts:,} POSTs in one burst",
        ("what", "accepted/s", "p50 ms", "p99 ms", "MiB above idle", "s to the last run's end",
         "answered", "lost", "doubled"),
    )  # fmt: skip
    rounds = [_burst(posts) for _ in range(size.rounds)]
    figures = {name: Spread.of(one[name] for one in rounds) for name in rounds[0]}
    table.add(
        "turnout, 64 runs at once", figures["rate"], figures["p50"], figures["p99"],
        figures["growth"], figures["drained"], *(sum(one[name] for one in rounds)
        for name in ("answered", "lost", "doubled")),
    )  # fmt: skip
    table.at_most("MiB above idle", figures["growth"].high, 100)
    table.at_most("accepted and lost", sum(one["lost"] for one in rounds), 0)
    table.at_most("accepted and doubled", sum(one["doubled"] for one in rounds), 0)
    return [table]


def _burst(posts: int) -> dict[str, float]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="turnout-bench-")))
        served = Fleet(folder, stack).turnout("burst", flows.FREE)
        program = served.program
        assert program is not None
        ask(served.port, HOOK, per_second=100, seconds=1)  # what is loaded late is loaded now
        idle = program.rss_mib()
        with most_memory(program) as most:
            started = time.perf_counter()
            answered = ask(
                served.port, HOOK, per_second=AT_ONCE_PER_SECOND,
                seconds=posts / AT_ONCE_PER_SECOND, connections=512,
            )  # fmt: skip
            program.quiet(300)
            drained = time.perf_counter() - started
        ends = stored.ends(program.data)
        return {
            **answered.figures(),
            "growth": most[0] - idle,
            "drained": drained,
            "answered": len(answered.due_at),
            "lost": sum(run not in ends for run in answered.due_at),
            "doubled": sum(runs > 1 for _, runs in ends.values()),
        }


@contextmanager
def most_memory(program: Program) -> Iterator[list[float]]:
    """Watch the program's memory; the one value is the most it had, in MiB."""
    most, over = [program.rss_mib()], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            most[0] = max(most[0], program.rss_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        over.set()
        watcher.join()
