"""`turnout pending` and its API against the real program: listed, shown, fired, dropped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_cli import Terminal
from tests.support.program import Program, until

FLOWS = """
from turnout import Event, all_of, count, event, flow

@flow(on=all_of(event("order"), event("payment"), within="10m", per=lambda event: event.data["id"]))
def ship(events: list[Event]) -> int:
    return len(events)

@flow(on=count(event("failed"), 5, "10m"))
def lock(events: list[Event]) -> int:
    return len(events)
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    (tmp_path / "flows.py").write_text(FLOWS)
    made = Program(flows=tmp_path / "flows.py", data=tmp_path / "data", log=tmp_path / "log")
    with made:
        made.start().ready()
        yield made


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_open_windows_are_listed_shown_fired_and_dropped(
    program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal(program.data, capsys)
    for kind in ("order", "failed", "failed"):
        terminal.type("emit", "--type", kind, "--input", '{"id": "7"}')
    ship, lock = sorted(terminal.lines("pending"), key=lambda window: window["flow"] == "lock")
    assert (ship["rule"], ship["key"], ship["events"]) == (
        'all_of(event:order, event:payment, within="10m")', "7", 1,
    )  # fmt: skip
    assert (lock["rule"], lock["key"], lock["events"]) == ('count(5, "10m")', None, 2)
    assert program.api("/pending?flow=ship")["items"] == [ship]
    shown = program.api(f"/pending/{ship['id'][-8:]}")
    assert shown["missing"] == ["event:payment"]
    assert [each["part"] for each in shown["members"]] == ["event:order"]
    text = terminal.type("pending", "show", ship["id"][-8:])
    assert "missing" in text and "event:payment" in text

    terminal.type("pending", "fire", ship["id"], "--by", "ada")
    program.quiet(10)
    (run,) = terminal.lines("runs", "--flow", "ship")
    assert (run["state"], run["result"], run["events"]) == ("succeeded", 1, 1)
    terminal.type("pending", "fire", ship["id"], code=1)
    assert "is not open: it is fired" in terminal.error
    terminal.type("pending", "show", "nothing", code=1)
    assert "no window 'nothing'" in terminal.error

    assert program.stop() == 0
    assert [each["id"] for each in terminal.lines("pending")] == [lock["id"]]
    terminal.type("pending", "drop", lock["id"], "--by", "ada", "--yes")
    assert "no window is open" in terminal.type("pending")
    for event in terminal.lines("events"):
        if event["type"] == "failed":
            answer = terminal.type("why", event["id"])
            assert "lock: dropped" in answer
    program.start().ready()
    until(lambda: program.unfinished() == 0, 10, "nothing runs")
    assert len(terminal.lines("runs")) == 1
    program.check_journal()
