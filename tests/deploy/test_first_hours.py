"""A new user with the first page alone: from a clone to an own flow that answers 202."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.support import CHECKOUT
from tests.support.pages import blocks
from tests.test_pages import README, Terminal

SECONDS = 120
"""How long it may take, on a machine that has the packages at hand or a usual line to an index."""


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_fresh_clone_answers_its_first_own_request_within_two_minutes(tmp_path: Path) -> None:
    clone = tmp_path / "turnout"
    subprocess.run(["git", "clone", "--quiet", CHECKOUT, clone], check=True)
    (tmp_path / "empty").mkdir()
    terminal = Terminal(tmp_path / "empty")
    terminal.env = {**terminal.env, "PATH": f"{clone}/.venv/bin:{terminal.env['PATH']}"}
    started = time.monotonic()
    subprocess.run([clone / "deploy" / "setup"], check=True, timeout=SECONDS)
    for block in blocks(README):
        if block.language == "python":
            assert block.file is not None
            (terminal.folder / block.file).write_text(block.text)
        elif block.language == "bash" and block.text.startswith("turnout serve"):
            with terminal.serving(block.text):
                (call,) = [each for each in blocks(README) if each.text.startswith("curl")]
                answer = terminal.type(call.text.replace("curl -sS", "curl -isS"))
                assert answer.startswith("HTTP/1.1 202 ")
                assert time.monotonic() - started <= SECONDS
                return
        elif block.language == "bash":
            terminal.type(block.text)
    pytest.fail("the first page serves nothing")
