"""Open windows in a journal of an earlier version fire, and the runs that wait there go on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.data.journals import make
from tests.support.old_service import OldService
from tests.support.program import until

JOURNALS = sorted(make.WINDOWED.glob("v*"))

OPEN = {
    ("index", "a"): 2, ("index", "b"): 1, ("tell", None): 2, ("insert", None): 2, ("lock", "a"): 2,
    ("watch", "a"): 1, ("ship", "a"): 1, ("ship", "b"): 1, ("miss", "a"): 1, ("silence", None): 0,
}  # fmt: skip
"""How many events the open windows have, by flow and key."""

WHOLE = {
    "insert": [[6, 7, 28]], "lock": [[8, 9, 29]], "watch": [[10, 30], [11, 12]], "ship": [[14, 31]],
    "prints": [[18, 19]], "races": ["cancelled", "paid"], "asks": [["ada", "bob"]],
    "polls": [0, 27],
}  # fmt: skip
"""The results of the runs that end by an event or an answer of the test."""

DUE = {
    "index": [2, 3], "tell": [[4, 5]], "remind": [[13]], "miss": [15], "silence": ["no beat"],
    "store": [[21, 22]], "races": ["cancelled", "forgotten", "paid"],
}  # fmt: skip
"""The results of the runs that end by the time that passes."""


@pytest.fixture(params=JOURNALS, ids=lambda path: str(path.name))
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OldService]:
    service = OldService(request.param, tmp_path)
    service.set_clock(timedelta(minutes=5))
    with service.program as program:
        program.start().ready()
        yield service


def results(opened: OldService, *flows: str) -> dict[str, list[Any]]:
    """Return the results of the runs of some flows that have succeeded."""
    found: dict[str, list[Any]] = {flow: [] for flow in flows}
    for run in opened.program.api("/runs?limit=100")["items"]:
        if run["flow"] in found and run["state"] == "succeeded":
            found[run["flow"]].append(run["result"])
    return {flow: sorted(each) for flow, each in found.items()}


def test_there_are_old_journals_with_windows() -> None:
    assert JOURNALS


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_open_windows_of_an_old_journal_fire_and_its_waiting_runs_go_on(opened: OldService) -> None:
    program = opened.program
    pending = program.api("/pending?limit=100")["items"]
    assert {(each["flow"], each["key"]): each["events"] for each in pending} == OPEN
    assert make.post(program, "pages", {"key": "a", "n": 1}, key="1")["duplicate"]
    scheduled = {run["id"] for run in program.api("/runs?flow=index")["items"]}

    for path, key, n in (
        ("rows", "a", 28), ("failures", "a", 29), ("shut", "a", 30), ("orders", "b", 31),
        ("went-on", "a", 18), ("paid", "a", 23), ("cancelled", "a", 24), ("polls", "a", 32),
    ):  # fmt: skip
        make.post(program, path, {"key": key, "n": n})
    (asked,) = program.api("/runs?flow=asks")["items"]
    make.steer(program, "approve", asked["id"], "--by", "bob")
    until(lambda: results(opened, *WHOLE) == WHOLE, 20, "what the events have made whole")
    answers = program.api(f"/runs/{asked['id']}")["answers"]
    assert [answer["by"] for answer in answers] == ["ada", "bob"]

    opened.set_clock(timedelta(hours=3))
    until(lambda: results(opened, *DUE) == DUE, 30, "what was due")
    assert program.api("/pending")["items"] == []
    index = program.api("/runs?flow=index")["items"]
    assert {run["id"] for run in index} == scheduled, "under the ids that were told"
    assert sorted(run["events"] for run in index) == [1, 2]
    assert program.stop() == 0
    program.check_journal()
