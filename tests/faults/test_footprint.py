"""What the service costs before it does anything: start, memory, processor.

The goals are those of a machine that does nothing else; at smoke size twice as much passes,
because shared machines are noisy. The numbers are printed.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.conftest import Say
from tests.support.program import Program, turnout, until

from .load import SECRET

FLOWS = Path(__file__).parent / "flows" / "three_steps.py"

COLD_START_SECONDS = 1.0
IDLE_RSS_MIB = 80.0
IDLE_CPU_SHARE = 0.01
HELP_SECONDS = 0.3

pytestmark = [pytest.mark.alone, pytest.mark.timeout(60)]


@pytest.fixture
def slack(full: bool) -> float:
    return 1.0 if full else 2.0


def program_in(tmp_path: Path) -> Program:
    (tmp_path / "inbox").mkdir()
    return Program(
        flows=FLOWS,
        data=tmp_path / "data",
        log=tmp_path / "log",
        spawned=True,
        env={
            "TURNOUT_TEST_WITNESS": str(tmp_path / "witness"),
            "TURNOUT_TEST_INBOX": str(tmp_path / "inbox"),
            "TURNOUT_TEST_TICK": "1h",
            "TURNOUT_TEST_SETTLE": "1s",
            "FAULTS_HMAC": SECRET,
        },
    )


def test_the_cold_start_to_the_first_202(tmp_path: Path, slack: float, say: Say) -> None:
    times = []
    with program_in(tmp_path) as program:
        for _ in range(3):
            began = time.monotonic()
            program.start()
            until(lambda: _accepted(program), 20, "a 202")
            times.append(time.monotonic() - began)
            program.kill()
    say(f"cold start to first 202: best {min(times):.2f} s of {[f'{t:.2f}' for t in times]}")
    assert min(times) <= COLD_START_SECONDS * slack


def _accepted(program: Program) -> bool:
    answer = program.ask("/hooks/minted", method="POST")
    return answer is not None and answer.status == 202


def test_the_idle_service_is_small_and_still(tmp_path: Path, slack: float, say: Say) -> None:
    with program_in(tmp_path) as program:
        program.start().ready()
        program.api("/runs")  # everything is loaded now, the operator's API too
        process = program.process()
        used, seconds = process.cpu_times(), 10.0 if slack == 1.0 else 3.0
        time.sleep(seconds)
        now = process.cpu_times()
        share = (now.user + now.system - used.user - used.system) / seconds
        rss = program.rss_mib()
    say(f"idle: RSS {rss:.1f} MiB, processor {share:.2%} of one core")
    assert rss <= IDLE_RSS_MIB * slack
    assert share <= IDLE_CPU_SHARE * slack


def test_help_is_quick(slack: float, say: Say) -> None:
    times = []
    for _ in range(3):
        began = time.monotonic()
        shown = turnout("--help", spawned=True)
        times.append(time.monotonic() - began)
        assert shown.returncode == 0 and "serve" in shown.stdout
    say(f"turnout --help: best {min(times):.2f} s of {[f'{t:.2f}' for t in times]}")
    assert min(times) <= HELP_SECONDS * slack
