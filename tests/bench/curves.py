"""(l) Throughput against concurrency, and latency against load: how the way in bends."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from . import flows
from .measure import Size, Spread, interleave
from .openloop import ask
from .report import Plot, Table
from .servers import HOOK, Fleet, Served

CONNECTIONS = (1, 4, 16, 64, 256)
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
NAMES = {
    "commit": "bare ASGI + group commit",
    "queued": "turnout: accepted",
    "free": "turnout: accepted, run, outcome on disk",
}


def run(size: Size) -> list[Table]:
    """Measure both curves on the same servers."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="turnout-bench-")))
        fleet = Fleet(place, stack)
        servers = {
            "commit": fleet.reference("commit"),
            "queued": fleet.turnout("queued", flows.OCCUPIED),
            "free": fleet.turnout("free", flows.FREE),
        }
        most, concurrency = _concurrency(servers, size)
        return [concurrency, _load(servers["free"], most, size)]


def _concurrency(servers: Mapping[str, Served], size: Size) -> tuple[float, Table]:
    """Return the most `free` did, and the table."""
    table = Table("l1", "throughput against concurrency", ("connections", *NAMES.values()))
    table.plot = Plot("connections at once", "requests/s", "throughput", logarithmic=True)
    most = 0.0
    for connections in CONNECTIONS:
        measures: dict[str, Callable[[], Mapping[str, float]]] = {
            name: partial(_rate, served, connections) for name, served in servers.items()
        }
        found = interleave(1 if size.quick else 3, measures)
        spreads = {name: Spread.of(figures["rate"]) for name, figures in found.items()}
        table.add(str(connections), *spreads.values())
        for name, spread in spreads.items():
            table.plot.add(NAMES[name], connections, spread.median)
        most = max(most, spreads["free"].median)
    return most, table


def _rate(served: Served, connections: int) -> Mapping[str, float]:
    if served.name == "free":
        return served.load_until_recorded(seconds=1, connections=connections)
    return served.load(seconds=1, connections=connections)[1]


def _load(free: Served, most: float, size: Size) -> Table:
    table = Table(
        "l2", "latency against load, open loop, to the 202", ("load", "requests/s", "p50", "p99")
    )
    table.plot = Plot("requests/s", "ms from when it was due to the 202", "latency")
    for share in SHARES:
        asking = partial(ask, free.port, HOOK, per_second=most * share)
        found = interleave(
            1 if size.quick else 3,
            {"free": lambda asking=asking: asking(seconds=size.seconds).figures()},  # type: ignore[misc]
        )["free"]
        rate, p50, p99 = (Spread.of(found[name]) for name in ("rate", "p50", "p99"))
        table.add(f"{share:.0%}", rate, p50, p99)
        table.plot.add("p50", rate.median, p50.median)
        table.plot.add("p99", rate.median, p99.median)
    table.notes.append("load is a share of the most that was run and recorded above")
    return table
