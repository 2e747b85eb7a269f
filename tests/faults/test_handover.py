"""One version after the other on a socket that stays: no request fails, and none is lost."""

from __future__ import annotations

import itertools
import random
import time
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Say
from tests.support.program import Program, until
from tests.support.socket_unit import listening, started_on_connection

from .ledger import broken_promises, snapshot
from .load import Generator, Ledger

FLOWS = Path(__file__).parent / "flows" / "work.py"
THREADS = 16
PACE = 500.0
GAP_SECONDS = 2.0
"""From the last answer of one version to the first of the next, on a machine with nothing else."""

pytestmark = pytest.mark.timeout(300)


def program_in(tmp_path: Path, **env: str) -> Program:
    return Program(
        flows=FLOWS,
        data=tmp_path / "data",
        log=tmp_path / "log",
        spawned=True,
        env={
            "TURNOUT_TEST_WITNESS": str(tmp_path / "witness"),
            "TURNOUT_TEST_GATE": str(tmp_path / "gate"),
            "TURNOUT_TEST_SECONDS": "0.002",
            "TURNOUT_TEST_AT_ONCE": "16",
            **env,
        },
    )


def hand_over(program: Program, seed: int, times: int) -> Ledger:
    """Replace the program so often under load; returns what the senders were answered."""
    program.start().ready()
    load = Generator(
        port=program.port, seed=seed, threads=THREADS, pace=PACE, github_share=0.0,
        answer_seconds=60,
    )  # fmt: skip
    with load.running() as ledger:
        for number in range(times):
            until(partial(_accepted, ledger, number * 200), 60, "answers")
            assert program.stop(60) == 0
            program.start().ready(60)
        before = len(ledger.accepted)
        until(partial(_accepted, ledger, before + 200), 60, "answers of the last version")
    return ledger


def _accepted(ledger: Ledger, count: int) -> bool:
    return len(ledger.accepted) > count


def test_no_request_fails_while_one_version_follows_another(
    tmp_path: Path, seed: int, full: bool, say: Say
) -> None:
    times = 20 if full else 2
    program = program_in(tmp_path)
    with listening() as listener, program:
        program.listener, program.port = listener, listener.getsockname()[1]
        ledger = hand_over(program, seed, times)
        program.quiet(60)
        assert program.stop() == 0
    answered = sorted(ledger.accepted_at.values())
    gaps = sorted(after - before for before, after in itertools.pairwise(answered))[-times:]
    say(f"{times} versions, {dict(ledger.statuses)}, gaps {[round(each, 2) for each in gaps]} s")
    assert set(ledger.statuses) == {202}
    last = snapshot(program.data)
    assert not broken_promises(last, accepted=ledger.accepted)
    assert {run.crashes for run in last.runs.values()} == {0}
    if full:
        assert gaps[-1] <= GAP_SECONDS


@pytest.mark.full
def test_on_a_socket_of_its_own_requests_fail_meanwhile(tmp_path: Path, seed: int) -> None:
    with program_in(tmp_path) as program:
        ledger = hand_over(program, seed, 1)
    assert ledger.statuses[None]


def test_a_spike_onto_a_service_that_is_gone_is_kept(
    tmp_path: Path, seed: int, full: bool, say: Say
) -> None:
    count = 20_000 if full else 1_000
    program = program_in(tmp_path, TURNOUT_IDLE_EXIT="3s")
    with listening() as listener, program:
        program.listener, program.port = listener, listener.getsockname()[1]
        load = Generator(
            port=program.port, seed=seed, threads=64, most=count, github_share=0.0, padding=300,
            answer_seconds=60,
        )  # fmt: skip
        peak = 0.0
        with started_on_connection(program) as starts:
            with load.running() as ledger:
                until(lambda: starts.count == 1, 20, "it was started")
                while sum(ledger.statuses.values()) < count:
                    peak = max(peak, program.rss_mib() if program.alive else 0)
            until(lambda: starts.codes, 120, "an idle service gone")
            assert starts.codes == [0]
    say(f"{dict(ledger.statuses)}, RSS {peak:.0f} MiB at most, {starts.count} start")
    refused = [answer for _, answer in ledger.refusals]
    assert set(ledger.statuses) <= {202, 503, 429}
    assert all("retry-after" in answer.headers for answer in refused)
    last = snapshot(program.data)
    assert not broken_promises(last, accepted=ledger.accepted)
    assert set(last.states()) == {"succeeded"}
    assert peak <= 150


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [pytest.param(60, marks=pytest.mark.full)])
def test_a_request_just_as_it_goes_is_answered(tmp_path: Path, seed: int, count: int) -> None:
    """Posts at about the instant at which the service finds itself idle."""
    program, dice = program_in(tmp_path, TURNOUT_IDLE_EXIT="1s"), random.Random(seed)
    accepted: dict[str, tuple[str, ...]] = {}
    with listening() as listener, program:
        program.listener, program.port = listener, listener.getsockname()[1]
        with started_on_connection(program) as starts:
            for number in range(count):
                answer = program.ask("/hooks/minted", method="POST", body=b"{}", timeout=60)
                assert answer is not None and answer.status == 202, (number, answer)
                accepted[answer.json["event"]] = tuple(answer.json["runs"])
                if number == 0:
                    until(lambda: starts.codes, 30, "an idle service gone")
                time.sleep(dice.uniform(0.9, 2.6))
            until(lambda: len(starts.codes) == starts.count, 30, "an idle service gone")
    assert starts.count > 1
    assert set(starts.codes) == {0}
    assert not broken_promises(snapshot(program.data), accepted=accepted)
