"""(d) A file is dropped until its run's first line; and a folder of 100,000 files.

Files are moved into the folder whole, at random instants. The references see the same drops:
`watchfiles` alone, which turnout listens with, at its default and tuned; and for the many files a
bare loop that looks at each and writes the same rows, a thousand to a commit.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import apsw
import watchfiles

from tests.support.program import Program, until
from turnout.service.domain.event import mint_id

from . import flows, stamps
from .load import BODY
from .measure import Size, Spread, interleave, percentile, ratio
from .pipelines import OUTCOME
from .references import CODE_VERSION, INSERT_EVENT, INSERT_RUN
from .report import Table
from .servers import Fleet, Served
from .stored import bare_journal

SETTLE_SECONDS = 0.1
GAP_SECONDS = 0.05
A_COMMIT = 1000
_names = count()
Waits = Mapping[str, float]


def run(size: Size) -> list[Table]:
    """Measure latency and volume."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="turnout-bench-")))
        return [_latency(Fleet(folder, stack), folder, size), _volume(folder, size)]


def _latency(fleet: Fleet, folder: Path, size: Size) -> Table:
    table = Table("d1", "file dropped → run started", ("what", "kept?", "p50 ms", "p99 ms"))
    settle, none = f"{SETTLE_SECONDS * 1000:g}ms", "0s"
    settled, at_once = _serve(fleet, folder, settle), _serve(fleet, folder, none)
    drops = 30 if size.quick else 60
    measures: dict[str, Callable[[], Waits]] = {
        "settled": partial(_served_waits, settled, drops, SETTLE_SECONDS),
        "at once": partial(_served_waits, at_once, drops, 0.0),
        "tuned": partial(_watched_waits, folder, drops, step=5, debounce=5),
        "default": partial(_watched_waits, folder, drops, step=50, debounce=1600),
    }
    found = interleave(size.rounds, measures)
    rows = (
        ("settled", f"turnout, after its settle={settle}", "event, run, file version"),
        ("at once", f"turnout, settle={none}", "event, run, file version"),
        ("tuned", "watchfiles alone, step and debounce 5 ms", "nothing"),
        ("default", "watchfiles alone, as it comes", "nothing"),
    )
    for name, text, kept in rows:
        table.add(text, kept, Spread.of(found[name]["p50"]), Spread.of(found[name]["p99"]))
    table.at_most("p50 ms after settle", Spread.of(found["settled"]["p50"]).median, 25)
    table.notes.append(f"{drops} files a round, {1 / GAP_SECONDS:g} a second at random instants")
    return table


def _serve(fleet: Fleet, folder: Path, settle: str) -> Served:
    name = f"settle-{settle}"
    inbox = folder / f"{name}-inbox"
    inbox.mkdir()
    env = {
        "BENCH_STAMPS": str(folder / f"{name}.stamps"),
        "BENCH_INBOX": str(inbox),
        "BENCH_SETTLE": settle,
    }
    return fleet.turnout(name, flows.DROPPED, env=env)


def _served_waits(served: Served, drops: int, settle: float) -> Waits:
    assert served.program is not None
    env = served.program.env
    dropped = _drop(Path(env["BENCH_INBOX"]), drops)
    written = Path(env["BENCH_STAMPS"])
    until(lambda: dropped.keys() <= stamps.read(written).keys(), 30, "a run for each file")
    return _waits(dropped, stamps.read(written), settle)


def _watched_waits(folder: Path, drops: int, *, step: int, debounce: int) -> Waits:
    inbox = folder / f"watched-{next(_names)}"
    inbox.mkdir()
    seen: dict[str, float] = {}
    with _watcher(inbox, seen, step, debounce):
        dropped = _drop(inbox, drops)
        until(lambda: dropped.keys() <= seen.keys(), 30, "a sign of each file")
    return _waits(dropped, seen, 0.0)


@contextmanager
def _watcher(inbox: Path, seen: dict[str, float], step: int, debounce: int) -> Iterator[None]:
    stop = threading.Event()

    async def watch() -> None:
        async for changes in watchfiles.awatch(
            inbox,
            step=step,
            debounce=debounce,
            stop_event=stop,
            rust_timeout=100,
        ):
            for _, path in changes:
                seen.setdefault(Path(path).name, time.time_ns() / 1e9)

    watcher = threading.Thread(target=asyncio.run, args=(watch(),))
    watcher.start()
    probe = inbox / "probe"
    until(lambda: probe.write_text("x") and "probe" in seen, 30, "the watcher")
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def _drop(inbox: Path, drops: int) -> dict[str, float]:
    """Move files in, one after the other; returns when each was, by name."""
    dropped: dict[str, float] = {}
    outside = inbox.with_name(f"{inbox.name}-outside")
    outside.mkdir(exist_ok=True)
    for _ in range(drops):
        name = f"order-{next(_names):06}.json"
        (outside / name).write_bytes(BODY)
        dropped[name] = time.time_ns() / 1e9
        (outside / name).rename(inbox / name)
        time.sleep(random.expovariate(1 / GAP_SECONDS))
    return dropped


def _waits(dropped: Mapping[str, float], seen: Mapping[str, float], settle: float) -> Waits:
    waits = [(seen[name] - at - settle) * 1000 for name, at in dropped.items()]
    return {"p50": percentile(waits, 0.5), "p99": percentile(waits, 0.99)}


def _volume(folder: Path, size: Size) -> Table:
    files = 2_000 if size.quick else 100_000
    table = Table(
        "d2", f"{files:,} files",
        ("what", "s to the last event", "s to the last recorded run", "files/s", "x reference",
         "most MiB"),
    )  # fmt: skip
    inbox = folder / "many"
    inbox.mkdir()
    for number in range(files):
        (inbox / f"order-{number:06}.json").write_bytes(BODY)
    bare = _bare(inbox, folder, files)
    table.add(
        "bare loop: look, the same rows, 1000 to a commit", None, bare, files / bare, 1.0, None
    )
    lying = _serve_many(folder, inbox, files, dropped=False)
    dropped = _serve_many(folder, inbox, files, dropped=True)
    table.notes.append("with the start of the process where files are there already; settle 1 s")
    for text, (accepted, ended, most) in (
        ("turnout, files there when it starts", lying),
        ("turnout, files made while it watches", dropped),
    ):
        speed = ratio([files / ended], [files / bare]).median
        table.add(text, accepted, ended, files / ended, speed, most)
        table.at_most(f"s for {files:,} files, {text}", ended, 60)
    return table


def _bare(inbox: Path, folder: Path, files: int) -> float:
    journal = folder / "bare-many"
    journal.mkdir()
    connection = bare_journal(journal)
    started = time.perf_counter()
    with os.scandir(inbox) as entries:
        waiting: list[str] = []
        seq = 0
        for entry in entries:
            found = entry.stat()
            waiting.append(f"{entry.path}-{found.st_ino}-{found.st_mtime_ns}-{found.st_size}")
            if len(waiting) == A_COMMIT:
                seq = _write(connection, waiting, seq)
                waiting = []
        _write(connection, waiting, seq)
    elapsed = time.perf_counter() - started
    connection.close()
    return elapsed


def _write(connection: apsw.Connection, waiting: list[str], seq: int) -> int:
    """Write events and runs, then their outcomes, as turnout does."""
    at = time.time_ns() // 1000
    rows = [(seq + place, identity) for place, identity in enumerate(waiting, 1)]
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(
        INSERT_EVENT, [(place, one, "/files", at, at, b"", "{}") for place, one in rows]
    )
    connection.executemany(
        INSERT_RUN, [(place, mint_id(), place, at, CODE_VERSION) for place, _ in rows]
    )
    connection.execute("COMMIT")
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(OUTCOME, [(at, b"null", place) for place, _ in rows])
    connection.execute("COMMIT")
    return seq + len(waiting)


def _serve_many(
    folder: Path, inbox: Path, files: int, *, dropped: bool
) -> tuple[float, float, float]:
    """Return seconds until all are accepted, until all runs are recorded, and the most MiB."""
    name = "dropped" if dropped else "lying"
    place = folder / f"many-{name}"
    place.mkdir()
    (place / "flows.py").write_text(flows.DROPPED)
    watched = inbox.with_name("many-made") if dropped else inbox
    watched.mkdir(exist_ok=True)
    env = {
        "BENCH_STAMPS": str(place / "stamps"),
        "BENCH_INBOX": str(watched),
        "BENCH_SETTLE": "1s",
    }
    with Program(
        flows=place / "flows.py", data=place / "data", log=place / "log", env=env
    ) as program:
        program.start()
        if dropped:
            program.ready()
        started = time.perf_counter()
        maker = threading.Thread(target=_make, args=(watched, files))
        if dropped:
            maker.start()
        else:
            program.ready()
        accepted, ended, most = 0.0, 0.0, 0.0
        while not ended:
            time.sleep(0.1)
            most = max(most, program.rss_mib())
            seconds = time.perf_counter() - started
            assert seconds < 600, f"{files} files not within 600 s:\n{program.log_tail()}"
            if not accepted and _accepted(program) >= files:
                accepted = seconds
            if accepted and not program.unfinished():
                ended = seconds
        if dropped:
            maker.join()
        return accepted, ended, most


def _make(inbox: Path, files: int) -> None:
    for number in range(files):
        (inbox / f"order-{number:06}.json").write_bytes(BODY)


def _accepted(program: Program) -> float:
    found = program.metrics("turnout_events_total")
    return sum(value for labels, value in found.items() if 'result="accepted"' in labels)
