"""(g) What a service costs before it does anything: start, memory, processor; and one run.

Each is started as its documentation has it for production on one machine, and one run of the same
empty handler is timed from the call until its recorded success is seen. Memory is the sum over all
processes, shared pages counted once among those that share them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # no stubs among the project's dependencies

from tests.support.ports import free_port
from tests.support.program import Program, until

from . import flows
from .load import BODY
from .measure import Size, Spread, Unavailable, percentile
from .orchestrators import Airflow, Dagster, Orchestrator, Prefect
from .peers import SCRIPTS, python_of, services
from .report import Table

SETTLE_SECONDS = 3.0
JSON = {"content-type": "application/json"}


def run(size: Size) -> list[Table]:
    """Measure turnout's footprint, and that of what else would be served."""
    table = Table(
        "g", "cold start, idle memory and processor, one run",
        ("what", "processes", "s from start to ready", "idle MiB", "idle CPU", "one run, ms",
         "run kept?"),
    )  # fmt: skip
    watched = 3.0 if size.quick else 10.0
    ours = [_turnout(watched) for _ in range(2 if size.quick else 5)]
    start, rss, cpu = (
        Spread.of(getattr(one, name) for one in ours) for name in ("start", "mib", "cpu")
    )
    table.add(
        "turnout: webhook, files, timers", str(ours[0].processes), start, rss,
        _percent(cpu.median), Spread.of(one.run_ms for one in ours), "yes",
    )  # fmt: skip
    others: dict[str, tuple[str, Callable[[float], Footprint]]] = {
        "FastAPI background task": ("no", _fastapi),
        "Prefect 3: server, a flow beside it": ("yes", partial(_orchestrator, Prefect)),
        "Dagster: webserver, daemon": ("yes", partial(_orchestrator, Dagster)),
        "Airflow 3: standalone": ("yes", partial(_orchestrator, Airflow)),
    }
    for name, (kept, measure) in others.items():
        try:
            found = measure(watched)
        except (Unavailable, AssertionError, OSError) as error:
            table.lost[name] = str(error)
            continue
        table.add(
            name, str(found.processes), found.start, found.mib, _percent(found.cpu),
            found.run_ms, kept,
        )  # fmt: skip
    table.at_most("s to the first 202", start.median, 1.0)
    table.at_most("idle MiB", rss.median, 80)
    table.at_most("idle CPU, % of a core", cpu.median * 100, 1)
    table.notes.append(
        "ready: the first 202; for the orchestrators all parts healthy, on a database that is"
        " already made; one run: the second, as the first loads code"
    )
    return [table]


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one service was found to cost."""

    start: float
    processes: int
    mib: float
    cpu: float
    run_ms: float


def _turnout(watched: float) -> Footprint:
    with tempfile.TemporaryDirectory(prefix="turnout-bench-") as place:
        folder = Path(place)
        (folder / "inbox").mkdir()
        (folder / "flows.py").write_text(flows.SMALL)
        program = Program(
            flows=folder / "flows.py", data=folder / "data", log=folder / "log",
            env={"BENCH_INBOX": str(folder / "inbox")},
        )  # fmt: skip
        with program:
            started = time.perf_counter()
            program.start()
            until(partial(_answers, program, "/hooks/orders"), 30, "a 202")
            start = time.perf_counter() - started
            waits = []
            for _ in range(20):
                sent = time.perf_counter()
                answer = program.ask(
                    "/hooks/answered?wait=10s", method="POST", body=BODY, headers=JSON
                )
                assert answer is not None and answer.status == 200, answer
                waits.append((time.perf_counter() - sent) * 1000)
            program.api("/runs")  # what is loaded late is loaded now
            return _idle([program.pid], start, percentile(waits, 0.5), watched)


def _answers(program: Program, path: str) -> bool:
    answer = program.ask(path, method="POST", body=BODY, headers=JSON)
    return answer is not None and answer.status == 202


def _fastapi(watched: float) -> Footprint:
    with _folder() as folder:
        port = free_port()
        command = [str(python_of("fastapi")), f"{SCRIPTS}/fastapi_background.py", str(port)]
        probe = Program(flows=folder, data=folder, log=folder, port=port)
        started = time.perf_counter()
        ready = partial(_answers, probe, "/hooks/orders")
        with services.running(command, folder / "fastapi.log", ready=ready) as child:
            start = time.perf_counter() - started
            sent = time.perf_counter()
            assert ready()
            return _idle([child.pid], start, (time.perf_counter() - sent) * 1000, watched)


def _orchestrator(made: Callable[[Path], Orchestrator], watched: float) -> Footprint:
    with _folder() as folder:
        served = made(folder)
        started = time.perf_counter()
        with served.running() as pids:
            start = time.perf_counter() - started
            served.run_seconds()
            return _idle(pids, start, served.run_seconds() * 1000, watched)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="turnout-bench-", ignore_cleanup_errors=True) as place:
        yield Path(place)


def _idle(pids: Sequence[int], start: float, run_ms: float, watched: float) -> Footprint:
    time.sleep(SETTLE_SECONDS)  # workers of the last run end
    roots = [psutil.Process(pid) for pid in pids]
    tree = [one for root in roots for one in (root, *root.children(recursive=True))]
    before = _seconds(tree)
    time.sleep(watched)
    after = _seconds(tree)
    cpu = sum(after[pid] - before[pid] for pid in after) / watched
    mib = sum(_mebibytes(process) for process in tree)
    return Footprint(start, len(after), mib, cpu, run_ms)


def _seconds(tree: Sequence[psutil.Process]) -> dict[int, float]:
    """Return the processor time of each that is still there."""
    found = {}
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            found[process.pid] = float(times.user + times.system)
    return found


def _mebibytes(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        return float(process.memory_full_info().pss) / 2**20
    return 0.0


def _percent(share: float) -> str:
    return f"{share * 100:.2f} %"
