"""`turnout run` of a flow over a window: it fires at once with the event that is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.program import turnout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

FLOWS = """
from turnout import all_of, batch, debounce, event, flow

@flow(on=debounce(event("saved"), "1h"))
async def last(page: dict) -> int:
    return page["n"]

@flow(on=batch(event("row"), 100, "1h"))
async def store(rows: list[dict]) -> int:
    return len(rows)

@flow(on=all_of(event("order"), event("payment"), within="10m"))
async def ship(both: list[dict]) -> None: ...
"""


def test_a_window_fires_at_once_with_the_event_that_is_given(tmp_path: Path) -> None:
    flows = tmp_path / "flows.py"
    flows.write_text(FLOWS)
    for name, result in (("last", "7"), ("store", "1")):
        done = turnout("run", f"{flows}:{name}", "--input", '{"n": 7}', timeout=90)
        assert (done.returncode, done.stdout.strip()) == (0, result), done.stderr


def test_a_pattern_is_refused_by_name(tmp_path: Path) -> None:
    flows = tmp_path / "flows.py"
    flows.write_text(FLOWS)
    done = turnout("run", f"{flows}:ship", "--input", "{}", timeout=90)
    assert done.returncode != 0
    assert "flow 'ship' starts when several events have come (all_of)" in done.stderr
