"""(a) webhook to 202, with the event and its queued run on disk; (b) webhook to run recorded."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from . import flows
from .measure import Size, Spread, interleave, ratio
from .report import Table
from .servers import Fleet, Served

COLUMNS = (
    "server", "durable before the answer?", "requests/s", "x reference", "CPU µs each",
    "CPU x reference", "p50 ms", "p99 ms",
)  # fmt: skip
CONNECTIONS = 64


def run(size: Size) -> list[Table]:
    """Measure the way in, beside what it could be."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="turnout-bench-")))
        fleet = Fleet(place, stack)
        bare, commit, fastapi = (fleet.reference(kind) for kind in ("bare", "commit", "fastapi"))
        queued = fleet.turnout("queued", flows.OCCUPIED)
        validating = fleet.turnout("validating", flows.OCCUPIED_VALIDATING)
        free = fleet.turnout("free", flows.FREE)
        measures: dict[str, Callable[[], Mapping[str, float]]] = {
            served.name: partial(_load, served, size.seconds)
            for served in (bare, commit, fastapi, queued, validating)
        }
        measures["free"] = partial(
            free.load_until_recorded, seconds=size.seconds, connections=CONNECTIONS
        )
        for measure in measures.values():  # the first second of each is its own warming up
            measure()
        found = interleave(size.rounds, measures)
        return [_accept(found), _record(found, fleet, size)]


def _load(served: Served, seconds: float) -> Mapping[str, float]:
    return served.load(seconds=seconds, connections=CONNECTIONS)[1]


def _row(
    table: Table, found: Mapping[str, Mapping[str, list[float]]], name: str, text: str, durable: str
) -> None:
    ours, reference = found[name], found["reference-commit"]
    table.add(
        text, durable,
        Spread.of(ours["rate"]), ratio(ours["rate"], reference["rate"]),
        Spread.of(ours["cpu"]), ratio(ours["cpu"], reference["cpu"]),
        Spread.of(ours["p50"]), Spread.of(ours["p99"]),
    )  # fmt: skip


def _accept(found: Mapping[str, Mapping[str, list[float]]]) -> Table:
    table = Table("a", "webhook → 202, event and queued run on disk", COLUMNS)
    rows = (
        ("reference-commit", "bare ASGI + group commit, the same rows", "yes"),
        ("queued", "turnout, the flow's one slot occupied", "yes"),
        ("validating", "turnout, the same, body validated as a model", "yes"),
        ("reference-bare", "bare ASGI, nothing kept", "no"),
        ("reference-fastapi", "FastAPI, body validated as a model, nothing kept", "no"),
    )
    for name, text, durable in rows:
        _row(table, found, name, text, durable)
    reference, plain = found["reference-commit"], found["reference-fastapi"]
    table.at_least(
        "x bare ASGI + group commit", ratio(found["queued"]["rate"], reference["rate"]).median, 0.85
    )
    table.at_least(
        "x FastAPI that validates and keeps nothing",
        ratio(found["validating"]["rate"], plain["rate"]).median, 3,
    )  # fmt: skip
    table.notes.append(f"{CONNECTIONS} connections")
    return table


def _record(found: Mapping[str, Mapping[str, list[float]]], fleet: Fleet, size: Size) -> Table:
    table = Table("b", "webhook → run recorded, flows running meanwhile", COLUMNS)
    _row(table, found, "reference-commit", "bare ASGI + group commit, nothing run", "yes")
    _row(table, found, "free", "turnout: accepted, run, outcome on disk", "yes")
    table.at_least(
        "x bare ASGI + group commit",
        ratio(found["free"]["rate"], found["reference-commit"]["rate"]).median, 0.5,
    )  # fmt: skip
    half = Spread.of(found["free"]["rate"]).median / 2
    free = fleet.turnout("half", flows.FREE)
    responding = fleet.turnout("responding", flows.RESPONDING)
    seconds = size.seconds * 2
    calm = interleave(
        size.rounds,
        {
            "half": lambda: free.load(seconds=seconds, connections=256, per_second=half)[1],
            "responding": lambda: responding.load(
                seconds=seconds, connections=256, per_second=half, query="?wait=10s"
            )[1],
        },
    )
    for name, text in (
        ("half", "turnout at half that load, to the 202"),
        ("responding", "turnout at half that load, to the run's recorded result (?wait=)"),
    ):
        ours = calm[name]
        table.add(
            text, "yes", Spread.of(ours["rate"]), None, Spread.of(ours["cpu"]), None,
            Spread.of(ours["p50"]), Spread.of(ours["p99"]),
        )  # fmt: skip
    table.at_most("p99 at half load, ms", Spread.of(calm["responding"]["p99"]).median, 25)
    return table
