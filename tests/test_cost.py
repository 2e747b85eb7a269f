"""What an event costs in counts, which no noise can hide: statements, commits, tasks, thread hops.

The real service is counted from outside turnout: SQLite's own trace, the event loop's methods, and
the interpreter's profile of the loop's thread, for calls of what makes traces.
Each bound is what is needed now with room for a share of what belongs to a batch, not to an event;
a statement, a task or a hop more for each event does not fit in it. Speed itself is measured by
`tests/bench`.
"""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest

from tests.conftest import Say
from tests.support.program import Program, until

FLOWS = """
import asyncio
from turnout import flow, limit, task, webhook

@flow(on=webhook("/queued"), concurrency=limit(1))
async def queued(order: dict) -> None:
    await asyncio.sleep(3600)

@flow(on=webhook("/run"))
async def run(order: dict) -> int:
    return order["id"]

@task
async def step(number: int) -> int:
    return number + 1

@flow(on=webhook("/steps"))
async def steps(order: dict) -> int:
    return await step(await step(await step(order["id"])))
"""

COUNTING = """
import json, os, re, signal, sys
import apsw, uvloop

counts = {"statements": 0, "commits": 0, "tasks": 0, "hops": 0, "tracing": 0}
tracing = re.compile(r"/(tracing|traces|trace_context|spans|otlp)[.]py$")
is_tracing = {}
writers = []

def counting(kind, method):
    def counted(*arguments, **named):
        counts[kind] += 1
        return method(*arguments, **named)
    return counted

def called(frame, event, argument):
    if event == "call":
        code = frame.f_code
        found = is_tracing.get(code)
        if found is None:
            found = is_tracing[code] = tracing.search(code.co_filename) is not None
        counts["tracing"] += found

def stated(event):
    counts["statements"] += 1
    counts["commits"] += event["sql"] == "COMMIT"

def opened(connection):
    connection.trace_v2(apsw.SQLITE_TRACE_STMT, stated)
    if connection.filename.endswith("journal.db") and not connection.readonly("main"):
        writers.append(connection)

def changes():
    while True:
        try:
            return sum(writer.total_changes() for writer in writers)
        except apsw.ThreadingViolationError:  # its thread is writing just now
            pass

def tell(*_):
    rows = changes()
    with open(os.environ["COSTS"], "a") as out:
        out.write(json.dumps(counts | {"rows": rows}) + "\\n")

apsw.connection_hooks.append(opened)
uvloop.Loop.create_task = counting("tasks", uvloop.Loop.create_task)
uvloop.Loop.call_soon_threadsafe = counting("hops", uvloop.Loop.call_soon_threadsafe)
uvloop.Loop.run_in_executor = counting("hops", uvloop.Loop.run_in_executor)
signal.signal(signal.SIGUSR2, tell)
sys.setprofile(called)
"""

AT_ONCE = 64
ROUNDS = 16
EVENTS = AT_ONCE * ROUNDS

pytestmark = pytest.mark.timeout(60)


@dataclass(frozen=True)
class Costs:
    """Counts for each event, between two looks; what no event alone decides, for each commit."""

    rows: float
    tasks: float
    tracing: float
    commits: float
    statements_a_commit: float
    hops_a_commit: float

    @classmethod
    def between(cls, before: dict[str, int], after: dict[str, int]) -> Costs:
        found = {kind: after[kind] - before[kind] for kind in after}
        return cls(
            rows=found["rows"] / EVENTS,
            tasks=found["tasks"] / EVENTS,
            tracing=found["tracing"] / EVENTS,
            commits=found["commits"] / EVENTS,
            statements_a_commit=found["statements"] / found["commits"],
            hops_a_commit=found["hops"] / found["commits"],
        )

    def above(self, bounds: Costs) -> list[str]:
        """Return what is dearer than its bound, by name."""
        ours, most = asdict(self), asdict(bounds)
        return [kind for kind in ours if ours[kind] > most[kind]]


@contextmanager
def counted(tmp_path: Path, *, extra: str = "", **env: str) -> Iterator[Program]:
    """Serve the flows with everything counted; `extra` is code that makes it dearer."""
    (tmp_path / "flows.py").write_text(FLOWS)
    program = Program(
        flows=tmp_path / "flows.py",
        data=tmp_path / "data",
        log=tmp_path / "log",
        env={"COSTS": str(tmp_path / "costs"), "TURNOUT_CONCURRENCY": "2000"} | env,
        sabotage=COUNTING + extra,
    )
    with program:
        program.start().ready()
        yield program


def costs(program: Program, path: str, *, stays: bool) -> Costs:
    """Post events to one path, `AT_ONCE` together; returns what each cost, its run included."""
    post(program, path, 2)  # what is done once is done now
    first = 2 * AT_ONCE
    until(lambda: program.unfinished() == first * stays, 20, "the first runs")
    before = look(program)
    post(program, path, ROUNDS)
    until(lambda: program.unfinished() == (first + EVENTS) * stays, 30, "all runs")
    return Costs.between(before, look(program))


def look(program: Program) -> dict[str, int]:
    """Return the counts so far."""
    told = Path(program.env["COSTS"])
    lines = len(told.read_text().splitlines()) if told.exists() else 0
    program.signal(signal.SIGUSR2)
    until(lambda: told.exists() and told.read_text().count("\n") > lines, 10, "counts")
    counts: dict[str, int] = json.loads(told.read_text().splitlines()[-1])
    return counts


def post(program: Program, path: str, rounds: int) -> None:
    """Post on many connections at once, answers read before the next round."""
    body = b'{"id":7,"note":"ring twice"}'
    request = (
        f"POST /hooks{path} HTTP/1.1\r\nhost: turnout\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body
    with ExitStack() as stack:
        peers = [
            stack.enter_context(socket.create_connection(("127.0.0.1", program.port), 20))
            for _ in range(AT_ONCE)
        ]
        for _ in range(rounds):
            for peer in peers:
                peer.sendall(request)
            for peer in peers:
                answer = peer.recv(65536)
                assert answer.startswith(b"HTTP/1.1 202"), answer


# Now, 25 to 50 events share a commit, of 4 to 8 statements, reads by /metrics among them.
ACCEPTED = Costs(
    rows=2.1, tasks=1.1, tracing=0, commits=0.25, statements_a_commit=12, hops_a_commit=1.5
)
RECORDED = Costs(
    rows=3.1, tasks=2.1, tracing=0, commits=0.5, statements_a_commit=13, hops_a_commit=1.5
)
STEPPED = Costs(
    rows=6.1, tasks=2.1, tracing=0, commits=1.0, statements_a_commit=15, hops_a_commit=1.5
)
DECIDED = 3.1
"""Calls by which it is decided that a run is not traced: of about 380, as many without steps."""


@pytest.mark.parametrize(
    ("path", "bounds"), [("/queued", ACCEPTED), ("/run", RECORDED), ("/steps", STEPPED)]
)
def test_an_event_costs_no_more_than_it_must(
    tmp_path: Path, say: Say, path: str, bounds: Costs
) -> None:
    with counted(tmp_path) as program:
        found = costs(program, path, stays=path == "/queued")
    say(str(found))
    assert not found.above(bounds), found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "bounds", "share"),
    [("/run", RECORDED, "0"), ("/steps", STEPPED, "0"), ("/steps", STEPPED, "1")],
)
def test_traces_cost_only_the_runs_that_are_sampled(
    tmp_path: Path, say: Say, path: str, bounds: Costs, share: str
) -> None:
    tracing = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",  # nobody listens
        "OTEL_TRACES_SAMPLER": "traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": share,
    }
    with counted(tmp_path, **tracing) as program:
        found = costs(program, path, stays=False)
    say(str(found))
    dearer = found.above(replace(bounds, tracing=DECIDED))
    assert dearer == ([] if share == "0" else ["rows", "tracing"]), found


FOR_EACH_EVENT = """
import asyncio
from turnout.service.intake.emitter import TriggerEmitter

honest = TriggerEmitter.__call__

async def dear(self, events, positions=None):
    {more}
    return await honest(self, events, positions)

TriggerEmitter.__call__ = dear
"""
FOR_EACH_JOB = """
from turnout.service.journal.sqlite.writer import Writer

honest = Writer._commit

def dear(self):
    for job in self._in_progress:
        self._connection.execute({more!r})
    honest(self)

Writer._commit = dear
"""
A_COMMIT_EACH = """
from turnout.service.journal.sqlite import writer
writer.BATCH_ROWS = 1
"""
TASK = "asyncio.get_running_loop().create_task(asyncio.sleep(0))"
ROW = "INSERT INTO paused (name, since) VALUES (hex(randomblob(8)), 0)"


@pytest.mark.parametrize(
    ("extra", "dearer"),
    [
        (FOR_EACH_JOB.format(more="SELECT 1"), "statements_a_commit"),
        (FOR_EACH_JOB.format(more=ROW), "rows"),
        (A_COMMIT_EACH, "commits"),
        (FOR_EACH_EVENT.format(more=TASK), "tasks"),
        (FOR_EACH_EVENT.format(more="await asyncio.to_thread(int)"), "hops_a_commit"),
    ],
    ids=["statement", "row", "commit", "task", "hop"],
)
@pytest.mark.slow
def test_one_thing_more_for_each_event_is_noticed(tmp_path: Path, extra: str, dearer: str) -> None:
    with counted(tmp_path, extra=extra) as program:
        found = costs(program, "/queued", stays=True)
    assert dearer in found.above(ACCEPTED), found
