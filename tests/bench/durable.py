"""(f) Durable runs of one and three steps, one at a time and a hundred at once.

Beside a bare pipeline that commits as often: the event with its run, each step, the outcome; with
group commit where many are at once. Both on uvloop, on their own journal, `synchronous=FULL`. The
peers run as many steps, each in an environment of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from turnout.handlers.flow import flow
from turnout.handlers.task import task
from turnout.service.domain.flow import Flow

from .load import BODY
from .measure import Size, Spread, Unavailable, interleave, ratio
from .peers import measured, services
from .pipelines import bare, on_loop, raw, turnout
from .report import Table

ORDER = BODY.decode()


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
RAW = "raw asyncio, nothing kept"
DURABLE = {RAW: "no", PREFECT: "no: states are reported, results are not kept by default"}
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
        "all but asyncio keep a history of runs and steps; a turnout run ends when"
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


def _run_prefect(server: services.PrefectServer, steps: int, together: int) -> Mapping[str, float]:
    runs = 5 if together == 1 else 20
    return measured(
        "prefect", "prefect_runs", *map(str, (steps, runs, together)), ORDER, env=server.env
    )


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
        RAW: partial(on_loop, partial(raw, steps), 10 * runs, together),
        "bare commits": partial(on_loop, partial(bare, steps), runs, together),
        "turnout": partial(on_loop, partial(turnout, made), runs, together),
    }
    asked = {
        name: partial(run_peer, steps, together)
        for name, run_peer in peers.items()
        if name not in table.lost and (name != PREFECT or steps == 3)  # it takes too long for both
    }
    seldom = {name: asked.pop(name) for name in (PREFECT,) if name in asked}
    found = interleave(size.rounds, measures | asked, table.lost)
    found |= interleave(1 if size.quick else 2, seldom, table.lost)
    least, ours = found["bare commits"]["rate"], found["turnout"]["rate"]
    for name, figures in found.items():
        rate = figures["rate"]
        table.add(
            name, DURABLE.get(name, "yes"), str(steps), str(together), Spread.of(rate),
            ratio(rate, least), ratio(ours, rate), Spread.of(figures["cpu"]),
        )  # fmt: skip
    if steps == 3 and together == 1:
        table.at_most("serial 3 steps: time x the bare pipeline", ratio(least, ours).median, 1.5)
    if steps == 3 and together == 100:
        for name, bound in ((DBOS, 100), (PREFECT, 1000)):
            if name in found:
                times = ratio(ours, found[name]["rate"]).median
                table.at_least(f"3 steps, 100 at once: x {name}", times, bound)
