"""(a) webhook to 202, with the event and its queued run on disk; (b) webhook to run recorded.

Rates are taken by wrk at a fixed number of connections (a closed loop), latencies at half the rate
in an open loop (`openloop`), to the answer and to the instant the journal has for the run's end.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.support.ports import free_port

from . import flows, stored
from .load import client_seconds
from .measure import Size, Spread, Unavailable, interleave, percentile, ratio
from .openloop import ask
from .peers import SCRIPTS, python_of
from .report import Table
from .servers import HOOK, Fleet, Served

COLUMNS = (
    "server", "durable before the answer?", "outcome kept?", "requests/s", "x reference",
    "CPU µs each", "CPU x reference", "p50 ms", "p99 ms",
)  # fmt: skip
CONNECTIONS = 64
BACKGROUND = "FastAPI background task"
Found = Mapping[str, Mapping[str, list[float]]]


def run(size: Size) -> list[Table]:
    """Measure the way in, beside what it could be."""
    accept = Table("a", "webhook → 202, event and queued run on disk", COLUMNS)
    record = Table("b", "webhook → run recorded, flows running meanwhile", COLUMNS)
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="turnout-bench-")))
        fleet = Fleet(place, stack)
        loaded = [fleet.reference(kind) for kind in ("bare", "commit", "fastapi")]
        loaded.append(fleet.turnout("queued", flows.OCCUPIED))
        loaded.append(fleet.turnout("validating", flows.OCCUPIED_VALIDATING))
        try:
            loaded.append(_background(fleet))
        except Unavailable as error:
            record.lost[BACKGROUND] = str(error)
        free = fleet.turnout("free", flows.FREE)
        responding = fleet.turnout("responding", flows.RESPONDING)
        measures: dict[str, Callable[[], Mapping[str, float]]] = {
            served.name: partial(_load, served, size.seconds) for served in loaded
        }
        measures["free"] = partial(
            free.load_until_recorded, seconds=size.seconds, connections=CONNECTIONS
        )
        measures["responding"] = partial(_load, responding, size.seconds, "?wait=10s")
        for measure in measures.values():  # the first second of each is its own warming up
            measure()
        used = client_seconds()
        found = interleave(size.rounds, measures)
        spent = client_seconds() - used
        requests = sum(sum(figures["requests"]) for figures in found.values())
        accept.notes.append(
            f"{CONNECTIONS} connections; the client (wrk, a process of its own) took"
            f" {spent / requests * 1e6:.0f} µs of processor time a request"
        )
        _accept(accept, found)
        _record(record, found)
        _half(record, found, free, responding, loaded[1], size)
    return [accept, record]


def _background(fleet: Fleet) -> Served:
    port = free_port()
    script = str(SCRIPTS / "fastapi_background.py")
    return fleet.command(BACKGROUND, [str(python_of("fastapi")), script, str(port)], port)


def _load(served: Served, seconds: float, query: str = "") -> Mapping[str, float]:
    return served.load(seconds=seconds, connections=CONNECTIONS, query=query)[1]


def _row(table: Table, found: Found, name: str, text: str, *promises: str) -> None:
    ours, reference = found[name], found["reference-commit"]
    table.add(
        text, *promises,
        Spread.of(ours["rate"]), ratio(ours["rate"], reference["rate"]),
        Spread.of(ours["cpu"]), ratio(ours["cpu"], reference["cpu"]),
        Spread.of(ours["p50"]), Spread.of(ours["p99"]),
    )  # fmt: skip


def _accept(table: Table, found: Found) -> None:
    rows = (
        ("reference-commit", "bare ASGI + group commit, the same rows", "yes"),
        ("queued", "turnout, the flow's one slot occupied", "yes"),
        ("validating", "turnout, the same, body validated as a model", "yes"),
        ("reference-bare", "bare ASGI, nothing kept", "no"),
        ("reference-fastapi", "FastAPI, body validated as a model, nothing kept", "no"),
    )
    for name, text, durable in rows:
        _row(table, found, name, text, durable, "nothing run")
    reference, plain = found["reference-commit"], found["reference-fastapi"]
    table.at_least(
        "x bare ASGI + group commit", ratio(found["queued"]["rate"], reference["rate"]).median, 0.85
    )
    table.at_least(
        "x FastAPI that validates and keeps nothing",
        ratio(found["validating"]["rate"], plain["rate"]).median, 3,
    )  # fmt: skip


def _record(table: Table, found: Found) -> None:
    rows = (
        ("reference-commit", "bare ASGI + group commit", "yes", "nothing run"),
        ("free", "turnout: accepted, run, outcome on disk", "yes", "yes"),
        ("responding", "turnout: the same, answered with the result (?wait=)", "yes", "yes"),
        (BACKGROUND, "FastAPI background task", "no", "no"),
    )
    for name, text, *promises in rows:
        if name in found:
            _row(table, found, name, text, *promises)
    table.at_least(
        "x bare ASGI + group commit",
        ratio(found["free"]["rate"], found["reference-commit"]["rate"]).median, 0.5,
    )  # fmt: skip


def _half(
    table: Table, found: Found, free: Served, responding: Served, reference: Served, size: Size
) -> None:
    """Latency in an open loop, each at half of the rate it was measured to have."""
    half = {name: Spread.of(found[name]["rate"]).median / 2 for name in ("free", "responding")}
    seconds = size.seconds * 2
    ended: dict[str, list[float]] = {"p50": [], "p99": []}

    def to_202() -> Mapping[str, float]:
        answered = ask(free.port, HOOK, per_second=half["free"], seconds=seconds)
        for part, value in _ended(free, answered.due_at).items():
            ended[part].append(value)
        return answered.figures()

    def to_result() -> Mapping[str, float]:
        path = f"{HOOK}?wait=10s"
        answered = ask(responding.port, path, per_second=half["responding"], seconds=seconds)
        return answered.figures()

    def bare() -> Mapping[str, float]:
        return ask(reference.port, HOOK, per_second=half["free"], seconds=seconds).figures()

    calm = interleave(size.rounds, {"bare": bare, "202": to_202, "result": to_result})
    p50, p99 = Spread.of(calm["bare"]["p50"]), Spread.of(calm["bare"]["p99"])
    text, rate = "bare ASGI + group commit at the load of the next row", calm["bare"]["rate"]
    table.add(text, "yes", "nothing run", Spread.of(rate), None, None, None, p50, p99)
    rows = (
        ("turnout at half that load, to the 202", calm["202"]["rate"], calm["202"]),
        ("turnout at half that load, to the run's end in the journal", calm["202"]["rate"], ended),
        ("turnout at half its load, to the answer with the result (?wait=)",
         calm["result"]["rate"], calm["result"]),
    )  # fmt: skip
    for text, rate, waits in rows:
        p50, p99 = Spread.of(waits["p50"]), Spread.of(waits["p99"])
        table.add(text, "yes", "yes", Spread.of(rate), None, None, None, p50, p99)
        table.at_most(f"p99 ms, {text}", p99.median, 25)
    table.notes.append(
        "half load is an open loop with random gaps; latency counts from when a request was due."
        " The run's end in the journal is its `finished_at`, which its commit follows"
    )


def _ended(served: Served, due_at: Mapping[str, float]) -> Mapping[str, float]:
    """Return how long after its request was due each run ended, in ms."""
    assert served.program is not None
    served.program.quiet(60)
    ends = stored.ends(served.program.data)
    waits = [(ends[run][0] - due) * 1000 for run, due in due_at.items()]
    return {"p50": percentile(waits, 0.5), "p99": percentile(waits, 0.99)}
