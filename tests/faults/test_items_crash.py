"""`Retry(items=…)` and `Fail(items=…)`, killed at every boundary of their rounds.

Nothing of the batch is lost, and no item that is done is done again: only a step whose effect had
happened, but was not recorded, runs a second time, under its idempotency key. One failed item is
one dead letter.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from tests.conftest import Say
from tests.support.program import Program, until

from .crash_points import SABOTAGE, plans_of
from .ledger import copied

FLOWS = Path(__file__).parent / "flows" / "items.py"

pytestmark = pytest.mark.timeout(600)

CALLS = [[0, 1, 2, 3, 4, 5], [0, 3, 4], [0, 3]]
STORED = {1: 0, 2: 0, 5: 0, 4: 1, 3: 2}
"""The round in which an item is stored."""

ALL_AGAIN = """
from dataclasses import replace
from turnout.service.journal.sqlite import items
honest_left = items.left
def all_again(members, recorded):
    round_ = honest_left(members, recorded).round
    return replace(members, round=round_)
items.left = all_again
"""

NOTHING_BURIED = """
from turnout.service.journal.sqlite.journal import SqliteJournal
honest_record = SqliteJournal.record
def forgetful(self, run, outcome, **named):
    outcome.failed_items = ()
    return honest_record(self, run, outcome, **named)
SqliteJournal.record = forgetful
"""


@dataclass
class Battery:
    """A program that is killed at planned points, one batch after the other."""

    folder: Path
    program: Program
    batches: int = 0

    @classmethod
    def at(cls, folder: Path, sabotage: str = "") -> Battery:
        env = {"CRASH_PLAN": str(folder / "plan"), "CRASH_LOG": str(folder / "passed")}
        program = Program(
            flows=FLOWS, data=folder / "data", log=folder / "log", env=env,
            sabotage=SABOTAGE + sabotage,
        )  # fmt: skip
        return cls(folder, program)

    def points(self) -> list[str]:
        return (self.folder / "passed").read_text().splitlines()

    def one_batch(self, plan: str | None = None) -> None:
        """Send a batch, let its run be killed as planned, and check what came of it."""
        self.batches += 1
        folder = self.folder / f"batch-{self.batches}"
        folder.mkdir()
        if plan is not None:
            (self.folder / "plan").write_text(plan)
        events = [self._accepted(folder, number) for number in range(6)]
        until(lambda: self._has_ended(events[0]), 90, f"the end of its run, killed at {plan}")
        assert not (self.folder / "plan").exists(), f"never came by {plan}"
        check(folder / "effects")
        with copied(self.program.data) as journal:
            runs = journal.execute(
                "SELECT e.id, r.state, r.replay, r.reason, r.window_seq IS NOT NULL FROM runs AS r"
                " JOIN events AS e ON e.seq = r.event_seq WHERE e.body ->> '$.folder' = ?",
                (str(folder),),
            ).fetchall()
        whole = "1 of 2 items failed: it cannot be stored"
        assert sorted(runs, key=lambda run: run[2]) == [
            (events[0], "succeeded", 0, whole, 1), (events[0], "failed", 1, None, 0),
        ], "one run, and a dead letter for one item"  # fmt: skip

    def _accepted(self, folder: Path, number: int) -> str:
        """Send an item until it is accepted; the first answer may die with the process."""
        body = orjson.dumps({"folder": str(folder), "number": number})
        key = f"{folder.name}-{number}"
        headers = {"content-type": "application/json", "idempotency-key": key}

        def accepted() -> str | None:
            self._alive()
            answer = self.program.ask("/hooks/items", method="POST", body=body, headers=headers)
            if answer is None or answer.status != 202:
                return None
            return str(answer.json["event"])

        return until(accepted, 90, "an accepted event")

    def _has_ended(self, event: str) -> bool:
        self._alive()
        token = (self.program.data / "api-token").read_text().strip()
        headers = {"authorization": f"Bearer {token}"}
        answer = self.program.ask(f"/api/runs?event={event}", headers=headers)
        if answer is None or answer.status != 200:
            return False
        states = [run["state"] for run in answer.json["items"]]
        return bool(states) and not {"queued", "running", "retrying"} & set(states)

    def _alive(self) -> None:
        if not self.program.alive:
            self.program.start()
            self.program.ready(60)


def check(effects: Path) -> None:
    lines = [json.loads(line) for line in effects.read_text().splitlines()]
    calls = [items for word, items, *_ in lines if word == "called"]
    rounds = [each for place, each in enumerate(calls) if each not in calls[:place]]
    assert rounds == CALLS, "each round is called with what is left"
    assert calls == sorted(calls, key=CALLS.index), "a round that is over is not called again"
    keys: dict[int, list[str]] = defaultdict(list)
    for word, number, *rest in lines:
        if word == "store" and rest[1]:
            keys[number].append(rest[0])
    assert set(keys) == set(STORED), "nothing is lost"
    for number, found in keys.items():
        assert len(set(found)) == 1, f"item {number} was stored again after it was done"
    again = Counter(map(len, keys.values()))
    assert again[2] <= 1 and set(again) <= {1, 2}, f"stored more than once: {keys}"


def chosen_of(plans: list[str], *, full: bool, seed: int) -> list[str]:
    """Return all plans, or one that ends a round and another: each is a start of the program."""
    if full:
        return plans
    dice = random.Random(seed)
    ends = [plan for plan in plans if plan.startswith(("load retrying", "load succeeded"))]
    others = [plan for plan in plans if plan not in ends and "event" not in plan]
    return [dice.choice(ends), dice.choice(others)]


def test_nothing_is_lost_and_nothing_done_is_done_again(
    tmp_path: Path, full: bool, seed: int, say: Say
) -> None:
    battery = Battery.at(tmp_path)
    with battery.program.start():
        battery.program.ready(60)
        battery.one_batch()
        plans = plans_of(battery.points())
        assert sum(plan.startswith("load retrying") for plan in plans) == 2
        assert sum(plan.startswith("inside store") for plan in plans) == 11
        chosen = chosen_of(plans, full=full, seed=seed)
        for plan in chosen:
            battery.one_batch(plan)
        battery.program.stop()
        battery.program.check_journal()
    say(f"{len(chosen)} of {len(plans)} points, each killed at once")


@pytest.mark.parametrize(
    ("sabotage", "words"),
    [(ALL_AGAIN, "what is left"), (NOTHING_BURIED, "a dead letter for one item")],
    ids=["all again", "no failed item"],
)
def test_it_notices_items_that_are_done_again_or_lost(
    tmp_path: Path, sabotage: str, words: str
) -> None:
    battery = Battery.at(tmp_path, sabotage)
    with battery.program.start():
        battery.program.ready(60)
        with pytest.raises(AssertionError, match=words):
            battery.one_batch()
