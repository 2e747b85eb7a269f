"""SIGKILL at random moments while every construct of flow control is in use.

Every event ends as a run or a decision, and no limit, rate, order or mode is broken at any recorded
instant: by the journal, read from outside, and by what the flows wrote down themselves.
"""

from __future__ import annotations

import json
import random
import sqlite3
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import Say
from tests.support.program import Program, until

from .ledger import FINISHED, copied
from .load import Connection

FLOWS = Path(__file__).parent / "flows" / "flow_control.py"
SECOND = 1_000_000
KEYS = "abc"
SENDERS = 4

LIMITS = {"limited": 2, "ordered": 1, "reader": 1, "account": 1}
"""How many runs of one key may run at once."""

GROUPS = {("few",): 3, ("bounded",): 1, ("late",): 1, ("reader", "writer"): 2}
"""How many runs of these flows together may run at once."""

RATES = {
    ("throttled", "throttle"): (20, 2 * SECOND),
    ("apart", "throttle"): (5, SECOND),
    ("", "throttle:calls"): (10, SECOND),
    ("accepted", "rate_limit"): (3, SECOND),
}
"""How many starts, or accepted runs, there may be in how many microseconds, by flow and place."""

SHARES = {
    "limited": 8, "few": 6, "ordered": 8, "throttled": 3, "apart": 2, "calls": 2, "accepted": 6,
    "replaced": 6, "latest": 6, "skipped": 6, "alone": 6, "bounded": 6, "stopped": 4, "stop": 2,
    "crm": 6, "reader": 6, "writer": 4, "account": 4, "late": 5,
}  # fmt: skip
"""How often each route is used, beside the others."""

TOLD_AGAIN = ("few",)
"""Routes with ids of the sender's own: what was not answered is sent again."""

pytestmark = pytest.mark.timeout(7200)

# ---------------------------------------------------------------- what is broken on purpose

LET_PASS = """
from turnout.service.flowcontrol.{module} import {gate}
{gate}.check = lambda self, run, now: None
"""

BROKEN = {
    "limit": (LET_PASS.format(module="limit", gate="KeyLimit"), "limited", "the limit is 2"),
    "rate": (LET_PASS.format(module="throttle", gate="ThrottleGate"), "calls", "11 starts in"),
    "order": (LET_PASS.format(module="order", gate="Order"), "ordered", "the limit is 1"),
}
"""What breaks a rule, the route that uses it, and what must be noticed."""


# ---------------------------------------------------------------- the load


@dataclass
class Sender:
    """Posts to random routes until it is stopped, and keeps what it was told."""

    port: int
    dice: random.Random
    routes: Mapping[str, int]
    accepted: dict[str, str] = field(default_factory=dict)
    statuses: Counter[int | None] = field(default_factory=Counter)
    _leaving: threading.Event = field(default_factory=threading.Event)
    _numbers: Iterator[int] = field(default_factory=count)

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._send, daemon=True) for _ in range(SENDERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._leaving.set()
            for thread in threads:
                thread.join(60)

    def _send(self) -> None:
        headers = {"Content-Type": "application/json"}
        names, shares = list(self.routes), list(self.routes.values())
        with Connection(self.port) as connection:
            for number in self._numbers:
                (route,) = self.dice.choices(names, shares)
                body = json.dumps({"key": self.dice.choice(KEYS), "number": number}).encode()
                answer = connection.post(f"/hooks/{route}", body, headers)
                while answer is None and route in TOLD_AGAIN and not self._leaving.wait(0.05):
                    answer = connection.post(f"/hooks/{route}", body, headers)
                self.statuses[None if answer is None else answer.status] += 1
                if answer is not None and answer.status == 202:
                    self.accepted[answer.json["event"]] = route
                if self._leaving.wait(0.02 if answer is None else 0.01):
                    return


# ---------------------------------------------------------------- what must hold


class Run(NamedTuple):
    """A run as the journal has it; instants in microseconds."""

    seq: int
    id: str
    flow: str
    state: str
    queued_at: int
    started_at: int | None
    finished_at: int | None
    key: str
    number: int
    refused: str | None
    error: str | None


class Start(NamedTuple):
    """A start, or an accepted run, that a rate has counted."""

    flow: str
    place: str
    key: str
    at: int


class Line(NamedTuple):
    """What a flow wrote down."""

    what: str
    pid: str
    flow: str
    key: str
    run: str


@dataclass
class Evidence:
    """All that is known in the end."""

    runs: list[Run]
    lines: list[Line]
    starts: set[Start]
    accepted: Mapping[str, str]
    events: set[str]
    unended_events: list[str]

    def of(self, flow: str) -> dict[str, list[Run]]:
        """Return the runs of a flow by key, in arrival order."""
        found: dict[str, list[Run]] = defaultdict(list)
        for run in self.runs:
            if run.flow == flow:
                found[run.key].append(run)
        return found


def broken_rules(seen: Evidence) -> list[str]:
    """Return every rule that was broken, in words."""
    return [
        *(f"accepted event {each} is lost" for each in seen.accepted.keys() - seen.events),
        *(f"event {each} ended as neither run nor decision" for each in seen.unended_events),
        *(f"run {run.id} of {run.flow} is {run.state}" for run in seen.runs
          if run.state not in FINISHED),
        *_above_limits(seen),
        *_above_limits_in_code(seen),
        *_given_back_early(seen),
        *_above_rates(seen),
        *_out_of_order(seen),
        *_wrong_modes(seen),
        *_not_unique(seen),
        *_told_twice(seen),
    ]  # fmt: skip


def _above_limits(seen: Evidence) -> Iterator[str]:
    """Find more runs at once than a limit allows, by the instants of their last attempts."""
    for flow, most in LIMITS.items():
        for key, runs in seen.of(flow).items():
            yield from _above(f"{flow} {key}", most, runs)
    for flows, most in GROUPS.items():
        yield from _above(str(flows), most, [run for run in seen.runs if run.flow in flows])


def _above(what: str, most: int, runs: Iterable[Run]) -> Iterator[str]:
    moves = [
        move
        for run in runs
        if run.started_at is not None and run.finished_at is not None
        for move in ((run.started_at, 1), (run.finished_at, -1))
    ]
    inside = 0
    for at, step in sorted(moves):  # an end at the same instant comes first
        inside += step
        if inside > most:
            yield f"{what}: {inside} runs at once at {at}, the limit is {most}"


def _above_limits_in_code(seen: Evidence) -> Iterator[str]:
    """Find more code at once than a limit allows, also of attempts that a kill ended."""
    inside: Counter[tuple[str, str]] = Counter()
    for line in seen.lines:
        counted = [(f"{line.flow} {line.key}", LIMITS[line.flow])] if line.flow in LIMITS else []
        counted += [(str(flows), most) for flows, most in GROUPS.items() if line.flow in flows]
        for what, most in counted:
            inside[line.pid, what] += 1 if line.what == "begin" else -1
            if inside[line.pid, what] > most:
                yield f"{what}: more than {most} in process {line.pid}, the limit is {most}"


def _given_back_early(seen: Evidence) -> Iterator[str]:
    """Find a run that began before another one of its key, which holds its place, had ended."""
    begun: dict[str, list[str]] = defaultdict(list)
    for line in seen.lines:
        if line.flow == "account" and line.what == "begin":
            runs = begun[line.key]
            if not runs or runs[-1] != line.run:
                runs.append(line.run)
    for key, runs in begun.items():
        for run, times in Counter(runs).items():
            if times > 1:
                yield f"account {key}: another run began while {run} had its place"


def _above_rates(seen: Evidence) -> Iterator[str]:
    found: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for start in seen.starts:
        found[start.flow, start.place, start.key].append(start.at)
    for (flow, place, key), instants in found.items():
        count, period = RATES[flow, place]
        instants.sort()
        for first, after in zip(instants, instants[count:], strict=False):
            if after - first < period:
                yield f"{flow} {place} {key}: {count + 1} starts in {after - first} µs"


def _out_of_order(seen: Evidence) -> Iterator[str]:
    """Find runs of an ordering key whose code first began in another order than they arrived."""
    seqs = {run.id: run.seq for run in seen.runs}
    last: dict[str, int] = {}
    begun: set[str] = set()
    for line in seen.lines:
        if line.flow != "ordered" or line.what != "begin" or line.run in begun:
            continue
        begun.add(line.run)
        if seqs[line.run] < last.get(line.key, 0):
            yield f"ordered {line.key}: run {line.run} began after a newer one"
        last[line.key] = max(last.get(line.key, 0), seqs[line.run])


def _told_twice(seen: Evidence) -> Iterator[str]:
    """Find orders that were sent again and made a second run."""
    for flow in TOLD_AGAIN:
        numbers = Counter(run.number for run in seen.runs if run.flow == flow)
        for number, times in numbers.items():
            if times > 1:
                yield f"{flow}: order {number} has {times} runs"


def _was_killed(error: str | None) -> bool:
    """Whether a run is a dead letter because the process died too often while it ran."""
    return error is not None and '"process_died"' in error


def _wrong_modes(seen: Evidence) -> Iterator[str]:
    for flow in ("replaced", "latest"):
        for key, runs in seen.of(flow).items():
            if runs[-1].state != "succeeded" and not _was_killed(runs[-1].error):
                yield f"{flow} {key}: the last run is {runs[-1].state}"
    ids = {run.id for run in seen.runs}
    for run in seen.runs:
        other = None if run.refused is None else json.loads(run.refused)["run"]
        if other and other not in ids:
            yield f"{run.flow}: run {run.id} was refused for one that is not there"


def _not_unique(seen: Evidence) -> Iterator[str]:
    for key, runs in seen.of("alone").items():
        kept = [run for run in runs if run.refused is None]
        for earlier, later in pairwise(kept):
            if earlier.finished_at is None or later.queued_at < earlier.finished_at:
                yield f"alone {key}: {later.id} was accepted before {earlier.id} had ended"


# ---------------------------------------------------------------- the test


@dataclass
class Battery:
    """A program that is killed again and again, and what was seen at each death."""

    program: Program
    ledger: Path
    dice: random.Random
    starts: set[Start] = field(default_factory=set)
    breakers: list[int] = field(default_factory=list)
    kills: int = 0

    def round(self, sender: Sender) -> None:
        """Start, live until some more events are accepted, and a little longer, be killed."""
        self.program.start()
        self.program.ready(60)
        if self.dice.random() < 0.5:
            self.ledger.with_name("crm-is-down").touch()
        else:
            self.ledger.with_name("crm-is-down").unlink(missing_ok=True)
        wanted = len(sender.accepted) + self.dice.randint(10, 100)
        until(lambda: len(sender.accepted) >= wanted, 60, f"{wanted} accepted events")
        time.sleep(self.dice.uniform(0, 0.05))
        self.program.kill()
        self.kills += 1
        self.look()

    def look(self) -> None:
        """Note what the journal of the dead process keeps for a while only."""
        with copied(self.program.data) as copy:
            self.starts |= {
                Start(*row)
                for table in ("starts", "accepted_runs")
                for row in copy.execute(f"SELECT flow, place, key, at FROM {table}")
            }
            (generation,) = copy.execute("SELECT max(generation) FROM breakers").fetchone()
            self.breakers.append(generation or 0)

    def settle(self, sender: Sender, timeout: float) -> Evidence:
        """Run until all is quiet, stop, and return all there is to know."""
        self.ledger.with_name("crm-is-down").unlink(missing_ok=True)
        self.program.start()
        self.program.ready(60)
        self.program.quiet(timeout)
        assert self.program.stop() == 0
        self.look()
        self.program.check_journal()
        with copied(self.program.data) as copy:
            return Evidence(
                runs=list(_runs(copy)),
                lines=[Line(*line.split()) for line in self.ledger.read_text().splitlines()],
                starts=self.starts,
                accepted=sender.accepted,
                events={event for (event,) in copy.execute("SELECT id FROM events")},
                unended_events=[event for (event,) in copy.execute(_UNENDED)],
            )


_UNENDED = """
SELECT e.id FROM events AS e WHERE e.decisions IS NULL
AND NOT EXISTS (SELECT 1 FROM runs AS r WHERE r.event_seq = e.seq)
"""


def _runs(copy: sqlite3.Connection) -> Iterator[Run]:
    rows = copy.execute(
        "SELECT r.seq, r.id, r.flow, r.state, r.queued_at, r.started_at, r.finished_at,"
        " json_extract(CAST(e.body AS TEXT), '$.key'),"
        " json_extract(CAST(e.body AS TEXT), '$.number'), r.refused, r.error"
        " FROM runs AS r JOIN events AS e ON e.seq = r.event_seq ORDER BY r.seq"
    )
    return (Run(*row) for row in rows)


@contextmanager
def battery(tmp_path: Path, seed: int, sabotage: str = "") -> Iterator[Battery]:
    ledger = tmp_path / "ledger"
    program = Program(
        flows=FLOWS,
        data=tmp_path / "data",
        log=tmp_path / "log",
        sabotage=sabotage,
        env={"TURNOUT_TEST_LEDGER": str(ledger), "TURNOUT_GRACE": "5s"},
    )
    with program:
        yield Battery(program, ledger, random.Random(seed))


def test_whatever_kills_it_no_rule_of_flow_control_is_broken(
    tmp_path: Path, seed: int, full: bool, say: Say
) -> None:
    with battery(tmp_path, seed) as test:
        sender = Sender(test.program.port, random.Random(seed), SHARES)
        with sender.running():
            for _ in range(200 if full else 5):
                test.round(sender)
        seen = test.settle(sender, timeout=300 if full else 90)
    states = Counter(run.state for run in seen.runs)
    refused = Counter(json.loads(run.refused)["reason"] for run in seen.runs if run.refused)
    answers = ", ".join(f"{count} of {status}" for status, count in sender.statuses.items())
    say(
        f"{test.kills} kills; answers {answers}; {len(seen.events)} events; runs {dict(states)}, "
        f"refused {dict(refused)}; {len(seen.starts)} counted starts; {len(seen.lines)} lines; "
        f"breaker generation {test.breakers[-1]}"
    )
    broken = broken_rules(seen)
    assert not broken, broken[:10]
    failed = [(run.flow, run.error) for run in seen.runs if run.state == "failed"]
    killed = [flow for flow, error in failed if _was_killed(error)]
    assert len(killed) == len(failed), "each run succeeds in the end, unless a rule ends it"
    say(f"{len(killed)} runs were under way at five deaths in a row")
    assert len(killed) <= len(seen.runs) / 200, "each run gets its chance between the kills"
    assert test.breakers == sorted(test.breakers), "a breaker went back to an older generation"
    assert seen.starts and sum(refused.values()), "no rule was in use: the test saw nothing"
    assert {line.run for line in seen.lines if line.what == "begin"}, "nothing ran"


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_noticed(tmp_path: Path, seed: int, rule: str) -> None:
    sabotage, route, words = BROKEN[rule]
    with battery(tmp_path, seed, sabotage) as test:
        sender = Sender(test.program.port, random.Random(seed), {route: 1})
        with sender.running():
            test.round(sender)
            test.program.start()
            test.program.ready()
            until(lambda: len(sender.accepted) > 150, 60, "150 events are accepted")
            test.program.kill()
            test.look()
        broken = broken_rules(test.settle(sender, timeout=60))
    assert any(words in text for text in broken), f"the check cannot see a broken {rule}"
