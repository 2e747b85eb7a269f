"""(q) Queue to result: one call of the same handler, sent by a client, until its result is kept.

turnout takes the call as a webhook or by `emit` in its own process; the queues take it by their own
client, and its result is read back. Each runs at its documented production setting.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from turnout.handlers.flow import flow

from . import flows
from .durable import ORDER
from .load import processor_seconds
from .measure import Size, Spread, Unavailable, interleave, ratio
from .peers import SCRIPTS, measured, program_of, services
from .pipelines import on_loop, turnout
from .report import Table
from .servers import Fleet

OURS, WAITED, INSIDE = "turnout, by webhook", "turnout, by webhook, result awaited", "turnout, emit"
CELERY, TASKIQ = "Celery, Redis", "Taskiq, Redis stream"
DBOS, DBOS_POSTGRES = "DBOS queue, SQLite", "DBOS queue, PostgreSQL"
PREFECT = "Prefect 3 background task, SQLite"
REDIS = "no: synced every second"
PROMISES = {  # durable before the call is acknowledged? result and history kept?
    OURS: ("yes", "yes"),
    WAITED: ("yes", "yes"),
    INSIDE: ("yes", "yes"),
    CELERY: (REDIS, "result for a day, no history"),
    TASKIQ: (REDIS, "result for an hour, no history"),
    DBOS: ("yes", "yes"),
    DBOS_POSTGRES: ("yes", "yes"),
    PREFECT: ("no: SQLite that syncs at checkpoints", "yes"),
}
CONNECTIONS = 64
Measure = Callable[[], Mapping[str, float]]


@flow
async def bill(order: dict[str, Any]) -> dict[str, Any]:
    return {"id": order["id"], "total": sum(i["count"] * i["price"] for i in order["items"])}


def run(size: Size) -> list[Table]:
    """Measure turnout and the queues that can be had."""
    table = Table(
        "q", "queue to result",
        ("what", "durable before the call is acknowledged?", "result and history kept?",
         "results/s", "turnout by webhook is x times this", "CPU µs each"),
    )  # fmt: skip
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="turnout-bench-")))
        folder.chmod(0o755)  # PostgreSQL runs as somebody else
        peers = _peers(folder, stack, table.lost, size)
        seldom = {name: peers.pop(name) for name in (PREFECT,) if name in peers}
        measures = _turnout(Fleet(folder, stack), size) | peers
        found = interleave(size.rounds, measures, table.lost)
        found |= interleave(1 if size.quick else 2, seldom, table.lost)
    ours = found[OURS]["rate"]
    for name, figures in found.items():
        rate = figures["rate"]
        cpu = Spread.of(figures["cpu"])
        table.add(name, *PROMISES[name], Spread.of(rate), ratio(ours, rate), cpu)
    for name, bound in ((CELERY, 10), (TASKIQ, 5)):
        if name in found:
            peer = found[name]["rate"]
            table.at_least(f"by webhook: x {name}", ratio(ours, peer).median, bound)
            table.at_least(f"emit: x {name}", ratio(found[INSIDE]["rate"], peer).median, bound)
    table.notes += [
        f"by webhook: {CONNECTIONS} connections until the last run's outcome is on disk; `emit`:"
        " 100 at once in turnout's own process; peers: all is sent, then all results are read",
        "CPU is that of the server or the workers, without clients, Redis or PostgreSQL; where"
        " calls do not leave the process (`emit`, DBOS) it is that of both sides",
        "Celery: prefork, a process per core; Taskiq: two processes, acknowledged when saved; Redis"
        " with an append-only file; DBOS and Prefect with their defaults",
    ]
    return [table]


def _turnout(fleet: Fleet, size: Size) -> dict[str, Measure]:
    sent = fleet.turnout("sent", flows.RETURNING)
    waited = fleet.turnout("waited", flows.RETURNING_TO_CALLER)
    runs = 2000 if size.quick else 8000

    def awaited() -> Mapping[str, float]:
        return waited.load(seconds=size.seconds, connections=CONNECTIONS, query="?wait=10s")[1]

    return {
        OURS: partial(sent.load_until_recorded, seconds=size.seconds, connections=CONNECTIONS),
        WAITED: awaited,
        INSIDE: partial(on_loop, partial(turnout, bill), runs, 100),
    }


def _peers(folder: Path, stack: ExitStack, lost: dict[str, str], size: Size) -> dict[str, Measure]:
    """Start the servers and workers; returns how to measure each peer."""
    part = 4 if size.quick else 1

    def celery() -> Measure:
        env = {"BENCH_REDIS": stack.enter_context(services.redis(folder / "celery"))}
        command = [program_of("celery", "celery"), "-A", "celery_queue", "worker", "-l", "ERROR"]
        return _worker(stack, folder, command, env, "celery_queue", 2000 // part)

    def taskiq() -> Measure:
        env = {"BENCH_REDIS": stack.enter_context(services.redis(folder / "taskiq"))}
        command = [program_of("taskiq", "taskiq"), "worker", "taskiq_queue:broker"]
        return _worker(stack, folder, command, env, "taskiq_queue", 4000 // part)

    def dbos() -> Measure:
        urls = (f"sqlite:///{folder}/dbos-{number}.sqlite" for number in count())
        return lambda: measured("dbos", "dbos_queue", str(400 // part), next(urls), ORDER)

    def dbos_postgres() -> Measure:
        url = stack.enter_context(services.postgres(folder / "dbos"))
        return partial(measured, "dbos", "dbos_queue", str(400 // part), url, ORDER)

    def prefect() -> Measure:
        env = stack.enter_context(services.prefect(folder / "prefect")).env
        command = [program_of("prefect", "prefect"), "task", "serve"]
        command += [f"{SCRIPTS}/prefect_queue.py:bill"]
        return _worker(stack, folder, command, env, "prefect_queue", 20)

    starters = {
        CELERY: celery, TASKIQ: taskiq, DBOS: dbos, DBOS_POSTGRES: dbos_postgres, PREFECT: prefect,
    }  # fmt: skip
    peers: dict[str, Measure] = {}
    for name, start in starters.items():
        try:
            peers[name] = start()
        except Unavailable as error:
            lost[name] = str(error)
    return peers


def _worker(
    stack: ExitStack,
    folder: Path,
    command: list[str],
    env: Mapping[str, str],
    script: str,
    calls: int,
) -> Measure:
    """Start a worker; returns how to measure it. Its client's first call waits until it works."""
    peer = Path(command[0]).name
    log = folder / f"{peer}-worker.log"
    worker = stack.enter_context(
        services.running(command, log, ready=lambda: True, cwd=SCRIPTS, env=dict(env))
    )

    def measure() -> Mapping[str, float]:
        cpu = processor_seconds(worker.pid)
        figures = measured(peer, script, str(calls), ORDER, env=env)
        return {**figures, "cpu": (processor_seconds(worker.pid) - cpu) / calls * 1e6}

    return measure
