"""Sagas under `kill -9` at random moments: what was done is undone, once all is well, by its key.

Orders fail, or are cancelled half-way; the bank that gives back is down for a while; the program is
killed again and again. In the end an operator retries what could not be undone.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.program import Program, turnout, until

FLOWS = Path(__file__).parent / "flows" / "saga.py"
ORDERS = 18
KILLS = 8

pytestmark = pytest.mark.timeout(150)


class Shop:
    """The program, the ledger of what was really done, and an operator's hands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: dict[str, str] = {}
        self.program = Program(
            flows=FLOWS,
            data=folder / "data",
            log=folder / "log",
            env={"TURNOUT_GRACE": "1s", "TURNOUT_TEST_LEDGER": str(folder)},
        )

    def order(self, kind: str, name: str) -> None:
        body = json.dumps({"order": name}).encode()
        headers = {"content-type": "application/json"}
        answer = self.program.ask(f"/hooks/{kind}", method="POST", body=body, headers=headers)
        assert answer is not None and answer.status == 202, answer
        self.runs[name] = answer.json["runs"][0]

    def kill(self) -> None:
        self.program.child.kill()
        self.program.ended(10)
        self.program.start()
        self.program.ready()

    def turnout(self, *arguments: str) -> None:
        turnout(*arguments, "--yes", env={"TURNOUT_DATA": str(self.program.data)})

    def listed(self, what: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.program.api(f"/{what}?limit=1000")["items"]
        return found

    def ended(self) -> bool:
        return all(run["state"] in ("failed", "cancelled") for run in self.listed("runs"))

    def ledger(self) -> list[list[str]]:
        return [line.split() for line in (self.folder / "ledger").read_text().splitlines()]


def test_whatever_kills_it_everything_is_given_back_by_its_key(
    tmp_path: Path, say: Callable[[str], None]
) -> None:
    seed = int(os.environ.get("TURNOUT_TEST_SEED", time.time_ns() % 2**32))
    say(f"TURNOUT_TEST_SEED={seed}")
    chance = random.Random(seed)
    shop = Shop(tmp_path)
    with shop.program.start():
        shop.program.ready()
        for number in range(ORDERS):
            shop.order(("fails", "waits", "parents")[number % 3], f"o{number}")
        for number in range(KILLS):
            time.sleep(chance.uniform(0.02, 0.4))
            if number == KILLS // 5:
                (tmp_path / "bank-down").touch()
            if number == KILLS // 3:
                # Each goes no further from here on, whatever it had come to.
                shop.turnout("cancel", "--flow", "waits", "--reason", "sale over")
                shop.turnout("cancel", "--flow", "parents")
            if number == KILLS // 2:
                (tmp_path / "bank-down").unlink()
            shop.kill()
        until(shop.ended, 60, "all runs have ended")
        dead = shop.listed("dead")
        say(f"{len(dead)} dead letters, {sum(run['undo'] == 'failed' for run in dead)} not undone")
        shop.turnout("retry", "--state", "failed")
        for _ in range(KILLS // 3):
            time.sleep(chance.uniform(0.02, 0.2))
            shop.kill()
        until(shop.ended, 60, "all that was retried has ended")
        assert not [run for run in shop.listed("runs") if run["undo"] in ("running", "failed")]
        assert shop.program.stop() == 0
        shop.program.check_journal()
    given_back_by_their_keys(shop)


def given_back_by_their_keys(shop: Shop) -> None:
    ledger = shop.ledger()
    for name in shop.runs:
        lines = [line for line in ledger if line[1] == name]
        taken = {(part, key) for what, _, part, key in lines if what == "take"}
        back = {(part, key) for what, _, part, key in lines if what == "back"}
        assert taken <= back, f"order {name}: {taken - back} was never given back"
        assert len({part for part, _ in back}) == len(back), f"order {name}: another key"
        first_back = next((at for at, line in enumerate(lines) if line[0] == "back"), len(lines))
        late = [line for line in lines[first_back:] if line[0] == "take"]
        assert not late, f"order {name} went on while it was undone: {late}"
        parts = [line[2] for line in lines if line[0] == "back"]
        assert parts == sorted(parts, reverse=True) or len(parts) > len(set(parts)), parts
