"""Random histories with crashes at random moments, against a dict as the model.

A crash is taken as a kill leaves it: the files are copied while the journal is open and has
unfinished business, and the copy is opened as if it were the folder of a dead process.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Awaitable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.journal_contract import NOW, claim_of, make_event, make_run, step
from turnout.service.domain.errors import ClaimLost, Refused
from turnout.service.domain.run import TRANSITIONS, UNFINISHED, Outcome, RunError, RunState
from turnout.service.journal.open import open_journal
from turnout.service.journal.records import (
    FAILED,
    Appended,
    ClaimedRun,
    Entry,
    Filter,
    Move,
    StepRecord,
)
from turnout.service.journal.sqlite.journal import SqliteJournal
from turnout.service.telemetry.metrics import Metrics

pytestmark = pytest.mark.timeout(180)  # hundreds of journals are opened, each with its fsyncs

S = RunState
_Value = TypeVar("_Value")
FLOWS = ("a", "b")
# Which claim or run a rule takes, modulo how many there are: whether a write in flight was in the
# files is a race, and Hypothesis wants what it draws to be the same whichever side won.
NUMBERS = st.integers(0, 99)


@dataclass
class KnownRun:
    """What the model knows of a run; `pending` are states a write in flight may have made it."""

    id: str
    flow: str
    seq: int
    event: str
    state: RunState
    attempts: int = 0
    crashes: int = 0
    consecutive_crashes: int = 0
    begun: bool = False
    dead: bool = False
    token: int = 0
    steps: dict[str, bytes | None] = field(default_factory=dict)


class JournalMachine(RuleBasedStateMachine):
    """What was acknowledged is there after every crash; what was not may or may not be."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.root = Path(tempfile.mkdtemp())
        self.generation = 0
        self.clock = NOW
        self.runs: dict[str, KnownRun] = {}
        self.deliveries: dict[str, Appended] = {}
        self.bodies: dict[str, bytes] = {}
        self.claims: list[ClaimedRun] = []
        self.positions: dict[str, str] = {}
        self.journal: SqliteJournal

    def do(self, work: Awaitable[_Value]) -> _Value:
        async def done() -> _Value:
            return await work

        self.clock += timedelta(seconds=1)
        return self.runner.run(done())

    @property
    def folder(self) -> Path:
        return self.root / str(self.generation)

    @initialize()
    def open(self) -> None:
        self.journal = self.do(
            open_journal(
                self.folder, metrics=Metrics(), max_unfinished_runs=10**6, min_free_bytes=0,
                synchronous="normal",
            )
        )  # fmt: skip

    def teardown(self) -> None:
        self.do(self.journal.close())
        self.runner.close()
        shutil.rmtree(self.root)

    # ---------------------------------------------------------------- rules

    @rule(
        flows=st.lists(st.sampled_from(FLOWS), max_size=2, unique=True),
        state=st.sampled_from([S.QUEUED, S.RUNNING, S.SCHEDULED, S.FAILED]),
        position=st.integers(0, 99),
    )
    def append(self, flows: list[str], state: RunState, position: int) -> None:
        due = self.clock if state is S.SCHEDULED else None
        runs = [make_run(flow, state, due_at=due) for flow in flows]
        entry = Entry(event=make_event(), runs=runs)
        positions = {"0": str(position)}
        moves = {"0": Move(self.positions.get("0"), str(position))}
        appended = self.do(
            self.journal.append([entry], trigger="t", positions=moves, now=self.clock)
        )[0]
        assert appended.runs == tuple(run.id for run in runs)
        self.positions |= positions
        self.learn(entry, appended)

    @rule(
        name=st.sampled_from("xyz"), body=st.sampled_from([b"1", b"1", b"2"]), twice=st.booleans()
    )
    def deliver(self, name: str, body: bytes, twice: bool) -> None:
        event = make_event(name, body=body)
        entries = [Entry(event=event, runs=[make_run()]) for _ in range(1 + twice)]
        for entry, appended in zip(
            entries, self.do(self.journal.append(entries, now=self.clock)), strict=True
        ):
            first = self.deliveries.get(name)
            if first is None:
                assert not appended.duplicate and not appended.conflict
                self.deliveries[name] = appended
                self.bodies[name] = body
                self.learn(entry, appended)
            else:
                assert (appended.event_seq, appended.runs) == (first.event_seq, first.runs)
                assert appended.duplicate == (body == self.bodies[name]) != appended.conflict

    def learn(self, entry: Entry, appended: Appended) -> None:
        for index, run in enumerate(entry.runs):
            known = KnownRun(
                run.id, run.flow, run.seq, appended.event, run.state, dead=run.state is S.FAILED
            )
            self.runs[run.id] = known
            if run.state is S.RUNNING:
                known.token, known.begun = 1, True
                self.claims.append(claim_of(entry, appended, index))

    @rule(flow=st.sampled_from(FLOWS), count=st.integers(1, 3))
    def claim_queued(self, flow: str, count: int) -> None:
        found = self.do(self.journal.queued(flow, 0, count))
        expected = sorted(
            run.seq for run in self.runs.values() if (run.flow, run.state) == (flow, S.QUEUED)
        )
        assert [item.seq for item in found] == expected[:count]
        self.take([item.seq for item in found])

    @rule()
    def claim_due(self) -> None:
        found = self.do(self.journal.due(self.clock + timedelta(days=1), 2))
        waiting = {S.SCHEDULED, S.RETRYING, S.WAITING}
        expected = [run.seq for run in self.runs.values() if run.state in waiting]
        assert {item.seq for item in found} <= set(expected)
        assert len(found) == min(2, len(expected))
        self.take([item.seq for item in found])

    def take(self, seqs: list[int]) -> None:
        for claimed in self.do(self.journal.claim(seqs, now=self.clock)):
            known = self.runs[claimed.claim.run_id]
            assert claimed.claim.token > known.token
            assert (claimed.attempt, claimed.crashes) == (known.attempts + 1, known.crashes)
            assert {key: kept.result for key, kept in claimed.recorded.items()} == known.steps
            assert claimed.isolated == (known.consecutive_crashes >= 2)
            known.state, known.token, known.begun = S.RUNNING, claimed.claim.token, True
            self.claims.append(claimed)

    @precondition(lambda self: self.claims)
    @rule(number=NUMBERS, key=st.sampled_from(["s#1", "s#2"]), result=st.binary(max_size=3))
    def record_step(self, number: int, key: str, result: bytes) -> None:
        claimed = self.claims[number % len(self.claims)]
        known = self.runs[claimed.claim.run_id]
        if not self.holds(claimed):
            self.expect_lost(self.journal.record_step(claimed.claim, step(key, result=result)))
            return
        self.do(self.journal.record_step(claimed.claim, step(key, result=result)))
        known.steps.setdefault(key, result)  # a fact is never overwritten
        if claimed.isolated:
            known.consecutive_crashes = 0  # it makes progress

    @precondition(lambda self: self.claims)
    @rule(number=NUMBERS, state=st.sampled_from(sorted(TRANSITIONS[S.RUNNING])))
    def record(self, number: int, state: RunState) -> None:
        claimed = self.claims[number % len(self.claims)]
        known = self.runs[claimed.claim.run_id]
        outcome = self.outcome(state)
        write = self.journal.record(claimed, outcome, started_at=self.clock, now=self.clock)
        if not self.holds(claimed):
            self.expect_lost(write)
            return
        self.do(write)
        known.state = state
        known.attempts += outcome.counts
        known.consecutive_crashes = 0
        known.dead = state is S.FAILED

    def outcome(self, state: RunState) -> Outcome:
        due = self.clock if state in (S.RETRYING, S.WAITING) else None
        error = RunError("E", "m") if state is S.FAILED else None
        return Outcome(state=state, due_at=due, error=error, counts=state is not S.QUEUED)

    def known(self, number: int) -> KnownRun:
        return list(self.runs.values())[number % len(self.runs)]

    def holds(self, claimed: ClaimedRun) -> bool:
        known = self.runs[claimed.claim.run_id]
        return known.state is S.RUNNING and known.token == claimed.claim.token

    def expect_lost(self, write: Awaitable[object]) -> None:
        try:
            self.do(write)
        except ClaimLost:
            return
        raise AssertionError("a write under a lost claim was taken")

    @precondition(lambda self: self.runs)
    @rule(number=NUMBERS)
    def cancel(self, number: int) -> None:
        known = self.known(number)
        try:
            self.do(self.journal.cancel(known.id, now=self.clock))
        except Refused:
            assert known.state not in UNFINISHED
        else:
            assert known.state in UNFINISHED
            amid = known.begun and known.state is not S.RETRYING
            known.attempts += amid  # the attempt it ends counts
            known.state = S.CANCELLED

    @precondition(lambda self: self.runs)
    @rule(number=NUMBERS)
    def retry(self, number: int) -> None:
        known = self.known(number)
        try:
            self.do(self.journal.retry(known.id, None, now=self.clock))
        except Refused:
            assert known.state in UNFINISHED
        else:
            if known.state is S.RETRYING:
                return  # its next try is due now
            assert known.state not in UNFINISHED
            known.state, known.attempts, known.dead, known.consecutive_crashes = (
                S.QUEUED,
                0,
                False,
                0,
            )
            known.begun = False
            known.steps.pop(FAILED, None)

    @rule(in_flight=st.booleans())
    def crash(self, in_flight: bool) -> None:
        """Copy the files as a kill leaves them, mid-write or idle, and open the copy."""
        unacknowledged = self.do(self.copy_files(in_flight))
        self.do(self.journal.close())
        self.generation += 1
        self.open()
        self.resolve(unacknowledged)
        rescued = self.do(self.journal.rescue(now=self.clock))
        running = [run for run in self.runs.values() if run.state is S.RUNNING]
        for run in running:
            run.consecutive_crashes += 1
            run.crashes += 1
            run.state = S.QUEUED
        given_up = [run for run in running if run.consecutive_crashes >= 5]
        for run in given_up:
            run.consecutive_crashes = 2
            run.steps[FAILED] = None
        assert set(rescued.failed) == {run.id for run in given_up}
        assert rescued.requeued == len(running) - len(rescued.failed)

    @rule(flow=st.sampled_from(FLOWS))
    def die_again_and_again(self, flow: str) -> None:
        """Crash under the same run until it is given up."""
        for _ in range(5):
            self.claim_queued(flow, 1)
            self.crash(False)

    @rule(flow=st.sampled_from(FLOWS))
    def fail_orphaned_runs(self, flow: str) -> None:
        failed = [
            run
            for run in self.runs.values()
            if (run.flow, run.state) == (flow, S.QUEUED) and FAILED in run.steps
        ]
        assert set(self.do(self.journal.fail_orphaned_runs(flow, now=self.clock))) == {
            run.id for run in failed
        }
        for run in failed:
            run.state, run.dead = S.FAILED, True

    async def copy_files(self, in_flight: bool) -> list[ClaimedRun]:
        """Return claims whose outcome was being written while the files were copied."""
        following = self.root / str(self.generation + 1)
        held = [claimed for claimed in self.claims if self.holds(claimed)] if in_flight else []
        async with asyncio.TaskGroup() as group:
            for claimed in held:
                group.create_task(
                    self.journal.record(
                        claimed, self.outcome(S.SUCCEEDED), started_at=self.clock, now=self.clock
                    )
                )
            await asyncio.sleep(0)
            # The log last: pages of the database are only ever as new as the log.
            (following / "journal").mkdir(parents=True)
            for name in ("journal.db", "journal.db-wal"):
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(self.folder / "journal" / name, following / "journal" / name)
        return held

    def resolve(self, unacknowledged: list[ClaimedRun]) -> None:
        """Learn what became of writes nobody was told about: whole, or not at all."""
        for claimed in unacknowledged:
            run = self.do(self.journal.run(claimed.claim.run_id))
            known = self.runs[claimed.claim.run_id]
            assert run is not None and run.state in (S.RUNNING, S.SUCCEEDED)
            assert run.attempts == known.attempts + (run.state is S.SUCCEEDED)
            known.state, known.attempts = run.state, run.attempts

    @rule()
    def stop_and_start(self) -> None:
        self.do(self.journal.close())
        self.open()

    # ---------------------------------------------------------------- what always holds

    @invariant()
    def counts_are_exact(self) -> None:
        states, dead = self.journal.counts()
        expected: dict[str, int] = {}
        for run in self.runs.values():
            if run.state in UNFINISHED:
                expected[run.state.value] = expected.get(run.state.value, 0) + 1
        assert {state: count for state, count in states.items() if count} == expected
        assert sum(dead.values()) == sum(run.dead for run in self.runs.values())

    @invariant()
    def everything_acknowledged_is_there(self) -> None:
        stored = {run.id: run for run in self.do(self.journal.runs(Filter(limit=10_000)))}
        assert stored.keys() == self.runs.keys()
        for known in self.runs.values():
            run = stored[known.id]
            assert (run.state, run.attempts, run.crashes, run.dead, run.event_id) == (
                known.state, known.attempts, known.crashes, known.dead, known.event,
            )  # fmt: skip
            kept: list[StepRecord] = self.do(self.journal.steps(known.seq)) if known.steps else []
            assert {record.key: record.result for record in kept} == known.steps
        assert self.do(self.journal.positions("t")) == self.positions


TestJournalCrashes = pytest.mark.slow(JournalMachine.TestCase)
TestJournalCrashes.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
