"""Many runs asleep: they cost no memory and no CPU, a restart takes no longer, all wake in time."""

from __future__ import annotations

import http.client
import json
import os
import time
from pathlib import Path

import pytest

from tests.conftest import Say
from tests.support.program import Program, until

from .ledger import copied

FLOWS = Path(__file__).parent / "flows" / "sleepers.py"

pytestmark = pytest.mark.timeout(300)

MOST_MIB = 20.0
MOST_RESTART_SECONDS = 1.0  # longer than the start of an empty journal
MOST_LATE_SECONDS = 5.0


def post(program: Program, path: str, body: object, times: int) -> None:
    """Send the same request so many times on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", program.port, timeout=10)
    sent, headers = json.dumps(body), {"content-type": "application/json"}
    for _ in range(times):
        connection.request("POST", path, sent, headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 202
    connection.close()


def asleep(program: Program) -> int:
    return int(program.metrics("turnout_runs").get('state="waiting"', 0))


def cpu_of_an_idle_while(program: Program, seconds: float) -> float:
    """Return how much of a core the program takes while nothing is asked of it, in percent."""
    process = program.process()
    before = process.cpu_times()
    time.sleep(seconds)  # the measure is of time passing
    after = process.cpu_times()
    used = after.user + after.system - before.user - before.system
    return float(used) / seconds * 100


def lateness(program: Program, due: float) -> list[float]:
    """Return how long after `due` each sleeper ended."""
    with copied(program.data) as journal:
        rows = journal.execute("SELECT finished_at FROM runs WHERE flow = 'sleeper'").fetchall()
    return [finished_at / 1e6 - due for (finished_at,) in rows]


@pytest.mark.full
def test_many_asleep_cost_nothing_and_wake_in_time(tmp_path: Path, full: bool, say: Say) -> None:
    count, rest = (10_000, 10.0) if full else (300, 2.0)
    a_tick = 100 / os.sysconf("SC_CLK_TCK") / rest  # the times of a process are counted in ticks
    program = Program(flows=FLOWS, data=tmp_path / "data", log=tmp_path / "log", spawned=True)
    with program.start():
        start = program.ready()
        post(program, "/hooks/nothing", {}, count)
        program.quiet(60)
        awake_cpu = cpu_of_an_idle_while(program, rest)
        memory = program.rss_mib()

        due = time.time() + (60 if full else 10)  # noqa: TID251  an instant for the flow
        post(program, "/hooks/sleep", {"until": due}, count)
        until(lambda: asleep(program) == count, 60, "all are asleep")
        cpu = cpu_of_an_idle_while(program, rest)
        grown = program.rss_mib() - memory
        assert time.time() < due, "the machine was too slow: they were to be asleep still"  # noqa: TID251

        program.kill()
        program.start()
        restart = program.ready()
        assert asleep(program) == count
        memory_again = program.rss_mib()
        until(lambda: asleep(program) == 0, 90, "all are awake")
        program.quiet(30)
        late = lateness(program, due)
        say(
            f"{count} asleep: {grown:+.1f} MiB, idle {awake_cpu:.2f} % -> {cpu:.2f} % of a core, "
            f"start {start:.2f} s, restart {restart:.2f} s to {memory_again:.0f} MiB, "
            f"awake {min(late):.2f} to {max(late):.2f} s after they were due"
        )
        assert len(late) == count and min(late) >= 0
        assert max(late) <= MOST_LATE_SECONDS
        assert grown <= MOST_MIB
        assert cpu <= awake_cpu + 0.5 + a_tick
        assert restart <= start + MOST_RESTART_SECONDS
        assert program.stop() == 0
        program.check_journal()
