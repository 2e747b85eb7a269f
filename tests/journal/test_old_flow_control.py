"""Runs that wait under the rules of flow control in a journal of an earlier version go on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.data.journals import make
from tests.support.old_service import OldService
from tests.support.program import until

JOURNALS = sorted(make.STEERED.glob("v*"))

CAUSES = {
    1: "event", 2: "limit", 3: "event", 4: "event", 5: "order", 8: "rate", 11: "event", 13: "mode",
    15: "event", 16: "event", 20: "event", 22: "pause", 23: "pause", 24: "pause", 25: "pause",
    26: "event", 27: "event", 28: "instant", 29: "breaker",
}  # fmt: skip
"""What the runs wait for, by number; the others have ended."""

GOES_ON = ("event", "limit", "order", "mode")
"""Causes of runs that go on by an event of the test."""

REFUSED = {10: "rate_limit", 12: "latest", 17: "skip", 19: "unique", 21: "unique"}


class OldRules(OldService):
    """An old service, asked about the runs of its journal by the numbers they were sent with."""

    def runs(self) -> dict[int, dict[str, Any]]:
        """Return the runs by the numbers they were sent with."""
        items = self.program.api("/runs?limit=100")["items"][::-1]
        numbers = [n for *_, n in make.ORDERS]
        return dict(zip(numbers, items, strict=False))  # later ones are of the test

    def whole(self, n: int) -> dict[str, Any]:
        """Return all that is known of a run."""
        found: dict[str, Any] = self.program.api(f"/runs/{self.runs()[n]['id']}")
        return found

    def waiting(self, n: int) -> dict[str, Any]:
        """Return what a run waits for."""
        found: dict[str, Any] = self.whole(n)["waiting"]
        return found

    def decided(self, n: int) -> str:
        """Return the reason for which a run was refused."""
        (decision,) = self.whole(n)["event"]["decisions"]
        return str(decision["reason"])

    def use(self, name: str) -> dict[str, Any]:
        """Return how much of a limit is in use."""
        return next(use for use in self.program.api("/limits")["items"] if use["name"] == name)

    def send(self, path: str, key: str) -> dict[str, Any]:
        """Send an event of the test's own, and return its run once it has ended."""
        answer = make.post(self.program, path, {"key": key, "n": 0})
        return self.until_ended(answer["runs"][0])


@pytest.fixture(params=JOURNALS, ids=lambda path: str(path.name))
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OldRules]:
    service = OldRules(request.param, tmp_path)
    service.set_clock(timedelta(minutes=5))
    with service.program as program:
        program.start().ready()
        yield service


def test_there_are_old_journals_of_flow_control() -> None:
    assert JOURNALS


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_what_waits_under_a_rule_in_an_old_journal_waits_under_it(opened: OldRules) -> None:
    program, runs = opened.program, opened.runs()
    waiting = [n for n, run in runs.items() if run["finished_at"] is None]
    paused = {n for n in waiting if opened.waiting(n)["cause"] == "pause"}
    assert paused == {n for n, cause in CAUSES.items() if cause not in ("event", "instant")}
    assert {pause["name"] for pause in program.api("/pauses")["items"]} == {
        "*", "flow:picks", "flow:expires", "trigger:webhook:/called-off",
    }  # fmt: skip
    make.steer(program, "resume", "--all")
    assert {n: opened.waiting(n)["cause"] for n in waiting} == CAUSES
    refused = {n: opened.decided(n) for n, run in runs.items() if run["state"] == "skipped"}
    assert refused == REFUSED
    assert [n for n, run in runs.items() if run["state"] == "cancelled"] == [14]
    rules = {(use["kind"], use["name"]): use for use in program.api("/limits")["items"]}
    assert rules["limit", "db"]["override"]["count"] == rules["limit", "db"]["max"] == 3
    assert rules["breaker", "crm"]["state"] == "open"
    assert opened.send("bills", "a")["id"] == runs[18]["id"], "it was asked for five minutes ago"
    assert opened.send("views", "a")["state"] == "skipped", "what was accepted counts"
    assert opened.send("views", "b")["state"] == "succeeded"
    assert make.post(program, "bills", {"key": "a", "n": 18}, key="18")["duplicate"]
    full = program.ask("/hooks/ordered", method="POST", body=b'{"key": "a", "n": 30}')
    assert full is not None and full.status == 429


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_what_waits_in_an_old_journal_goes_on_under_its_rule(opened: OldRules) -> None:
    program = opened.program
    make.steer(program, "resume", "--all")
    opened.set_clock(timedelta(hours=3))
    make.steer(program, "resume", "picks", "expires", "trigger:webhook:/called-off")
    make.post(program, "called-off", {"key": "b"})
    opened.until_ended(opened.runs()[27]["id"])
    for n in [n for n, cause in CAUSES.items() if cause in GOES_ON]:
        make.post(program, "went-on", {"n": n})
    program.quiet(30)
    ended = opened.runs()
    for n in CAUSES.keys() - {16, 25, 27}:
        assert (ended[n]["state"], ended[n]["result"]) == ("succeeded", n), n
    assert opened.decided(25) == "start_timeout"
    assert ended[27]["state"] == "cancelled"
    picked = sorted((22, 23, 24), key=lambda n: str(ended[n]["started_at"]))
    assert picked == [24, 23, 22], "the classes take turns"
    opened.set_clock(timedelta(hours=25))
    until(lambda: not program.api("/pauses")["items"], 20, "no pause is left")
    until(lambda: opened.use("db")["max"] == 1, 20, "the limit is what its file says")
    assert program.stop() == 0
    program.check_journal()
