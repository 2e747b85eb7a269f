"""Code of another system starts a flow by a signed request: one run for a key."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import pytest

from tests.support import CHECKOUT
from tests.support.program import Program
from turnout.handlers.examples.systems.call_turnout import start_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

CALLED = CHECKOUT / "handlers" / "examples" / "systems" / "called.py"


def test_a_request_that_is_repeated_starts_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", "of both sides")
    with Program(flows=CALLED, data=tmp_path / "data", log=tmp_path / "log").start() as program:
        monkeypatch.setenv("HOOK_URL", f"http://127.0.0.1:{program.port}/hooks/billed")
        program.ready()
        first = start_run({"receipt": "7"}, "a.b/1")
        program.kill()
        program.start()
        program.ready()
        assert start_run({"receipt": "7"}, "a.b/1") == first
        other = start_run({"receipt": "7"}, "a.b/2")
        assert other != first
        with pytest.raises(urllib.error.HTTPError, match="409"):
            start_run({"receipt": "8"}, "a.b/1")
        monkeypatch.setenv("HOOK_SECRET", "of nobody")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            start_run({"receipt": "7"}, "a.b/3")
        program.quiet(10)
        runs = program.api("/runs")["items"]
        assert {run["id"] for run in runs} == {first, other}
        assert program.api(f"/runs/{first}")["result"] == "7 is paid"
