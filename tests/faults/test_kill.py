"""SIGKILL at random moments under load: nothing accepted is lost, nothing recorded runs again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import Say
from tests.support.program import Program, turnout, until

from .ledger import Deaths, Snapshot, Witness, broken_promises, snapshot
from .load import SECRET, Generator, Ledger

FLOWS = Path(__file__).parent / "flows" / "three_steps.py"

pytestmark = pytest.mark.timeout(900)

ACKNOWLEDGE_FIRST = """
import asyncio
from turnout.service.intake.emitter import TriggerEmitter
from turnout.service.domain.event import mint_id
from turnout.service.domain.trigger import Receipt

honest, late = TriggerEmitter.__call__, set()

async def acknowledge_first(self, events, positions=None):
    async def later():
        await asyncio.sleep(0.03)
        await honest(self, events, positions)
    late.add(asyncio.get_running_loop().create_task(later()))
    return [Receipt(event=event.id, runs=(mint_id(),)) for event in events]

TriggerEmitter.__call__ = acknowledge_first
"""

FORGET_STEPS = """
from dataclasses import replace

from turnout.service.journal.sqlite.journal import SqliteJournal

honest = SqliteJournal.claim

async def forgetful(self, seqs, **named):
    return [replace(run, recorded={}) for run in await honest(self, seqs, **named)]

SqliteJournal.claim = forgetful
"""


@dataclass(kw_only=True)
class Battery:
    """A program under load that is killed again and again, and what is known at each death."""

    program: Program
    deaths: Deaths
    inbox: Path
    most_files: int
    dice: random.Random
    starts: list[float] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def round(self) -> None:
        """Start, live for 20 to 800 ms under load, be killed."""
        self.program.start()
        self.starts.append(self.program.ready())
        time.sleep(self.dice.uniform(0.02, 0.8))
        self.program.kill()
        self.deaths.note(self.program.data)

    @contextmanager
    def dropping(self) -> Iterator[None]:
        """Drop files inside the block, half of them renamed into place."""
        leaving = threading.Event()

        def drop() -> None:
            while not leaving.wait(0.05) and len(self.dropped) < self.most_files:
                name = f"{len(self.dropped)}.txt"
                self.dropped.append(name)
                if len(self.dropped) % 2:
                    (self.inbox / name).write_text(name)
                else:
                    (self.inbox / f"{name}.part").write_text(name)
                    (self.inbox / f"{name}.part").rename(self.inbox / name)

        dropper = threading.Thread(target=drop, name="dropper", daemon=True)
        dropper.start()
        try:
            yield
        finally:
            leaving.set()
            dropper.join(5)

    def settle(self, timeout: float) -> Snapshot:
        """Run once more until all is quiet, stop cleanly, and read what was kept."""
        self.program.start()
        self.starts.append(self.program.ready())

        def files_and_runs_done() -> bool:
            if self.program.unfinished():
                return False
            return len(snapshot(self.program.data).of_trigger("files")) >= len(self.dropped)

        until(files_and_runs_done, timeout, "every run ended and every file read")
        # What comes during a stop is queued for the next process: the timer would go on.
        assert turnout("pause", "every:200ms", "--data", self.program.data).returncode == 0
        self.program.quiet(timeout)
        self.program.check_journal()
        assert self.program.stop() == 0
        return snapshot(self.program.data)


@contextmanager
def battery(
    tmp_path: Path, seed: int, sabotage: str = "", *, most_files: int = 0
) -> Iterator[Battery]:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    witness = Witness(tmp_path / "witness")
    program = Program(
        flows=FLOWS,
        data=tmp_path / "data",
        log=tmp_path / "log",
        spawned=True,
        sabotage=sabotage,
        env={
            "TURNOUT_TEST_WITNESS": str(witness.path),
            "TURNOUT_TEST_INBOX": str(inbox),
            "FAULTS_HMAC": SECRET,
        },
    )
    with program:
        yield Battery(
            program=program,
            deaths=Deaths(witness),
            inbox=inbox,
            most_files=most_files,
            dice=random.Random(seed),
        )


def accepted_by_kind(ledger: Ledger) -> str:
    return ", ".join(f"{count} of {status}" for status, count in ledger.statuses.items())


def test_the_kill_loses_nothing(tmp_path: Path, seed: int, full: bool, say: Say) -> None:
    rounds, wanted = (100, 10_000) if full else (6, 500)
    with battery(tmp_path, seed, most_files=wanted // 5) as test:
        load = Generator(port=test.program.port, seed=seed, pace=400)
        with load.running() as ledger, test.dropping():
            for _ in range(rounds):
                test.round()
            while len(ledger.accepted) < wanted:
                test.round()
        last = test.settle(timeout=120 if full else 30)
        starts = sorted(test.starts)
        slow = starts[int(len(starts) * 0.95)]
        died = sum(run.error is not None for run in last.runs.values())
        say(
            f"{test.deaths.count} kills; answers {accepted_by_kind(ledger)}; "
            f"{ledger.duplicates} duplicates; {len(test.dropped)} files; "
            f"{len(last.of_trigger('every'))} ticks; {len(last.runs)} runs, {died} not succeeded; "
            f"start to ready p95 {slow:.2f} s"
        )
        broken = broken_promises(
            last,
            accepted=ledger.accepted,
            files=test.dropped,
            deaths=test.deaths,
        )
        assert not broken, broken[:10]
        assert test.deaths.recorded, "no kill came while steps were recorded: the test saw nothing"
        assert ledger.duplicates, "no redelivery was recognised: the test saw nothing"
        assert slow <= (2.0 if full else 4.0)  # in CI other tests share the machine


@pytest.mark.full
def test_an_acknowledgement_before_the_commit_is_noticed(tmp_path: Path, seed: int) -> None:
    with battery(tmp_path, seed, ACKNOWLEDGE_FIRST) as test:
        load = Generator(port=test.program.port, seed=seed, pace=400, github_share=0.0)
        with load.running() as ledger:
            for _ in range(3):
                test.round()
        events = {event for _, event in snapshot(test.program.data).events}
        assert set(ledger.accepted) - events, "the check cannot see a lost event"


@pytest.mark.full
def test_a_recorded_step_that_runs_again_is_noticed(tmp_path: Path, seed: int) -> None:
    with battery(tmp_path, seed, FORGET_STEPS) as test:
        load = Generator(port=test.program.port, seed=seed, pace=400)
        with load.running() as ledger:
            for _ in range(3):
                test.round()
        broken = broken_promises(
            test.settle(timeout=30),
            accepted=ledger.accepted,
            deaths=test.deaths,
        )
        assert any("ran again" in text for text in broken), "the check cannot see a repeated step"
