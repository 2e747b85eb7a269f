"""The disk fills up, or fails: no false promise, plain refusals, and work again once it can."""

from __future__ import annotations

import re
import time
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Say
from tests.support.program import Answer, Program, until

from .ledger import Witness, broken_promises, snapshot
from .load import Connection, Generator, Ledger
from .machine import Ballast, need_root, small_disk

FLOWS = Path(__file__).parent / "flows" / "work.py"

ACCEPT_UNWRITTEN = """
from turnout.service.intake.emitter import TriggerEmitter
from turnout.service.domain.errors import JournalFull
from turnout.service.domain.event import mint_id
from turnout.service.domain.trigger import Receipt

honest = TriggerEmitter.__call__

async def careless(self, events, positions=None):
    try:
        return await honest(self, events, positions)
    except JournalFull:
        return [Receipt(event=event.id, runs=(mint_id(),)) for event in events]

TriggerEmitter.__call__ = careless
"""

pytestmark = pytest.mark.timeout(300)


def program_on(place: Path, tmp_path: Path, **env: str) -> Program:
    return Program(
        flows=FLOWS,
        data=place / "data",
        log=tmp_path / "log",
        env={
            "TURNOUT_TEST_WITNESS": str(tmp_path / "witness"),
            "TURNOUT_TEST_GATE": str(tmp_path / "gate"),
            "TURNOUT_MIN_FREE_BYTES": "0",
            **env,
        },
    )


def hold_some_runs(program: Program, count: int) -> list[str]:
    """Start runs that end when the gate opens; returns their ids."""
    runs = []
    for _ in range(count):
        answer = program.ask("/hooks/gated", method="POST")
        assert answer is not None and answer.status == 202, answer
        runs += answer.json["runs"]
    return runs


def refused(ledger: Ledger, since: float, at_least: int = 1) -> bool:
    return sum(at > since for at, _ in ledger.refusals) >= at_least


def _more(ledger: Ledger, count: int) -> bool:
    return len(ledger.accepted) >= count


def accepted(ledger: Ledger, since: float) -> bool:
    return max(ledger.accepted_at.values()) > since


def check_full_behaviour(program: Program) -> None:
    """Everything but accepting works, and the service says what is wrong.

    Not ready at once: the first write that does not fit may be followed by smaller ones that do.
    """
    reason = until(lambda: _unready(program), 10, "/readyz 503")
    assert re.search("full|space|grow", reason), reason
    for path in ("/healthz", "/metrics"):
        began = time.monotonic()
        answer = program.ask(path)
        assert answer is not None and answer.status == 200, f"{path}: {answer}"
        assert time.monotonic() - began <= 1.0, path


def test_the_full_disk_refuses_and_recovers(
    tmp_path: Path, seed: int, full: bool, say: Say
) -> None:
    witness, gate = Witness(tmp_path / "witness"), tmp_path / "gate"
    recoveries: list[float] = []
    held: list[str] = []
    with small_disk(tmp_path / "disk", 128) as place, program_on(place, tmp_path) as program:
        ballast = Ballast(place)
        program.start().ready()
        load = Generator(port=program.port, seed=seed, pace=300, github_share=0.0, padding=2000)
        with load.running() as ledger:
            for _ in range(10 if full else 2):
                gate.unlink(missing_ok=True)
                held += hold_some_runs(program, 8)
                before = len(ledger.accepted)
                until(partial(_more, ledger, before + 100), 10, "a hundred more 202s")
                ballast.fill()
                filled = time.monotonic()
                until(partial(refused, ledger, filled), 30, "a refusal")
                check_full_behaviour(program)
                gate.touch()  # runs end while their outcome cannot be written
                until(partial(refused, ledger, filled, at_least=200), 30, "refusals")
                check_full_behaviour(program)
                ballast.free()
                freed = time.monotonic()
                until(partial(accepted, ledger, freed), 10, "a 202 again")
                recoveries.append(time.monotonic() - freed)
        program.quiet(30)
        assert program.log_text().count("service.started") == 1, "it was restarted"
        program.check_journal()
        assert program.stop() == 0
        last = snapshot(program.data)
    say(
        f"{len(recoveries)} times full: answers {dict(ledger.statuses)}; "
        f"recovered in {max(recoveries):.2f} s at most"
    )
    assert set(ledger.statuses) == {202, 503}
    for _, answer in ledger.refusals:
        assert 1 <= int(answer.headers["retry-after"]) <= 120
    broken = broken_promises(last, accepted=ledger.accepted)
    assert not broken, broken[:10]
    executed = [line.run for line in witness.executions() if line.task == "gated"]
    assert sorted(executed) == sorted(held), "a finished run was executed again"
    assert {last.runs[run].result for run in held} == {'"through"'}
    assert max(recoveries) <= 5.0


def test_a_false_202_on_a_full_disk_is_noticed(tmp_path: Path, seed: int) -> None:
    with small_disk(tmp_path / "disk", 32) as place, program_on(place, tmp_path) as program:
        program.sabotage = ACCEPT_UNWRITTEN
        program.start().ready()
        load = Generator(port=program.port, seed=seed, pace=300, github_share=0.0, padding=2000)
        with load.running() as ledger:
            until(lambda: ledger.accepted, 10, "a 202")
            ballast = Ballast(place)
            ballast.fill()
            until(lambda: _unready(program), 30, "a full journal")
            full_at = time.monotonic()
            until(partial(accepted, ledger, full_at + 0.2), 10, "a false 202")
            ballast.free()
        until(lambda: not _unready(program), 10, "ready again")
        program.quiet(30)
        assert broken_promises(snapshot(program.data), accepted=ledger.accepted)


def _unready(program: Program) -> str:
    answer = program.ask("/readyz")
    assert answer is not None
    return "" if answer.status == 200 else answer.body.decode()


def test_the_watermark_refuses_before_the_disk_is_full(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", 48) as place,
        program_on(place, tmp_path, TURNOUT_MIN_FREE_BYTES="16MiB") as program,
    ):
        ballast = Ballast(place)
        program.start().ready()
        ballast.fill()
        with Connection(program.port) as connection:
            answer = until(lambda: _not_202(connection), 20, "a refusal")
            assert answer.status == 503 and int(answer.headers["retry-after"]) >= 1
            ballast.free()
            until(lambda: _not_202(connection) is None, 5, "a 202 again")
        assert program.stop() == 0


def _not_202(connection: Connection) -> Answer | None:
    answer = connection.post("/hooks/minted", b"", {})
    assert answer is not None
    return None if answer.status == 202 else answer


@pytest.mark.parametrize("path", ["/hooks/unmatched", "/hooks/minted"])
def test_a_failed_fsync_ends_the_process_and_acknowledges_nothing_after(
    tmp_path: Path, seed: int, full: bool, say: Say, path: str
) -> None:
    need_root("a failing disk", "strace")
    place = tmp_path / "place"
    place.mkdir()
    program = program_on(place, tmp_path)
    accepted: dict[str, tuple[str, ...]] = {}
    with program:
        program.start().ready()
        assert program.stop() == 0
        for number in range(10 if full else 1):
            trace = tmp_path / f"trace-{number}"
            after = 12 + (seed + number * 7) % 30
            program.prefix = (
                "strace", "-f", "-qq", "-ttt", "-o", str(trace), "--seccomp-bpf",
                "-e", "trace=fsync,fdatasync",
                "-e", f"inject=fsync,fdatasync:error=EIO:when={after}+",
            )  # fmt: skip
            accepted |= _post_until_it_ends(program, path, trace)
        program.prefix = ()
        program.start().ready()
        program.quiet(20)
        program.check_journal()
        assert program.stop() == 0
    last = snapshot(program.data)
    kept = {event for _, event in last.events}
    say(f"{len(accepted)} accepted before the disk failed; exit 74 each time")
    assert accepted.keys() <= kept and set(last.states()) <= {"succeeded"}


def _post_until_it_ends(program: Program, path: str, trace: Path) -> dict[str, tuple[str, ...]]:
    """Post one by one to a process whose fsync will fail; returns what it accepted.

    An event that matches no flow is one commit, so there even an answer that is only received
    after the failure is a false one. Else the request must have been sent before: the failed
    commit may be that of an earlier event's outcome.
    """
    accepted: dict[str, tuple[str, ...]] = {}
    last_at = 0.0
    program.start().ready()
    with Connection(program.port) as connection:
        while program.alive:
            sent_at = _wall_clock()
            answer = connection.post(path, b"", {})
            if answer is not None and answer.status == 202:
                accepted[answer.json["event"]] = tuple(answer.json["runs"])
                last_at = _wall_clock() if path == "/hooks/unmatched" else sent_at
    assert program.ended(10) == 74, program.log_tail()
    failed = [line for line in trace.read_text().splitlines() if "INJECTED" in line]
    assert failed, "the disk never failed: the test saw nothing"
    assert last_at < float(failed[0].split()[1]), "a 202 came after the disk had failed"
    return accepted


def _wall_clock() -> float:
    return time.clock_gettime(time.CLOCK_REALTIME)


@pytest.mark.full
def test_a_thread_that_never_returns_does_not_outlive_the_disk(tmp_path: Path) -> None:
    need_root("a failing disk", "strace")
    program = program_on(tmp_path, tmp_path)
    with program:
        program.prefix = (
            "strace", "-f", "-qq", "-o", str(tmp_path / "trace"), "--seccomp-bpf",
            "-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO:when=120+",
        )  # fmt: skip
        program.start().ready()
        stuck = program.ask("/hooks/stuck", method="POST")
        assert stuck is not None and stuck.status == 202
        with Connection(program.port) as connection:
            until(lambda: not _is_202(connection.post("/hooks/unmatched", b"", {})), 10, "EIO")
        assert program.ended(10) == 74, program.log_tail()


def _is_202(answer: Answer | None) -> bool:
    return answer is not None and answer.status == 202
