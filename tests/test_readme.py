"""A stranger with only the README: every block of code in it runs, every table is the code's own.

`python` blocks are files, in the order they stand; `bash` blocks are typed in their folder, with
`turnout serve` left running as in a first terminal. `console` blocks need Docker or a fresh clone:
what they name must exist, and what they run is run by the tests named beside them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from .process import environment, free_port, turnout, until
from .readme import README, Block, blocks, rewritten

CHECKOUT = README.parent
TEXT = README.read_text("utf-8")
BLOCKS = blocks(TEXT)


class Terminal:
    """A folder, and a shell whose `turnout` is this one, listening where nobody else does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.env = environment({"PATH": path, "TURNOUT_PORT": str(self.port)})

    def type(self, commands: str) -> str:
        """Run commands; returns what they print. The first that fails is an error."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands.replace(":8080", f":{self.port}")],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}"
        return done.stdout

    @contextmanager
    def serving(self, command: str) -> Iterator[None]:
        """Leave `turnout serve …` running; it must stop cleanly at the end."""
        with subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=self.folder, env=self.env
        ) as it:
            try:
                until(self._is_ready, 20, f"an answer to {command}")
                yield
            finally:
                it.terminate()
        assert it.returncode == 0

    def _is_ready(self) -> bool:
        ask = ["curl", "-fsS", f"http://127.0.0.1:{self.port}/readyz"]
        return subprocess.run(ask, capture_output=True, check=False).returncode == 0


@pytest.mark.timeout(120)
def test_every_block_of_code_runs_in_order(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    terminal = Terminal(tmp_path)
    printed: dict[str, str] = {}
    with ExitStack() as first_terminal:
        for block in BLOCKS:
            if block.language == "python":
                write(block, terminal)
            elif block.language == "bash" and block.text.startswith("turnout serve"):
                first_terminal.enter_context(terminal.serving(block.text))
            elif block.language == "bash":
                printed[block.text] = terminal.type(block.text)
        assert "Hello, world!" in said(printed, "turnout run hello.py")
        assert '"duplicate":false' in said(printed, "curl").replace(" ", "")
        assert "hello" in said(printed, "turnout runs\n")
        assert "receipt-7" in said(printed, "turnout run orders.py")


def write(block: Block, terminal: Terminal) -> None:
    """Save a python block under the name its first line gives, and check or test it."""
    assert block.file, f"README.md:{block.line}: the first line names no file"
    (terminal.folder / block.file).write_text(block.text)
    if block.file.startswith("test_"):
        pytest_options = "-q -p no:randomly -p no:cacheprovider"
        assert "passed" in terminal.type(f"python -m pytest {pytest_options} {block.file}")
    else:
        assert "warning" not in terminal.type(f"turnout check {block.file} 2>&1")


def said(printed: dict[str, str], command: str) -> str:
    """Return what the block that holds a command printed."""
    (found,) = (text for block, text in printed.items() if command in block)
    return found


def test_every_language_is_one_that_is_run_or_judged() -> None:
    # mermaid: test_state_diagram; text: what programs print.
    known = {"bash", "python", "console", "mermaid", "text"}
    assert {block.language for block in BLOCKS} == known


def test_console_blocks_and_links_name_what_exists() -> None:
    typed = " ".join(block.text for block in BLOCKS if block.language == "console")
    named = re.findall(r"(?:\./)?(?:deploy|\.ci)/[\w./-]+", typed)
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", TEXT)
    mentioned = re.findall(r"`((?:\./)?(?:deploy|\.ci|service|triggers|tests)/[\w./-]*)`", TEXT)
    assert len(named) >= 4
    for path in named + linked + mentioned:
        assert (CHECKOUT / path).exists(), path
    for script in ("deploy/setup", "deploy/try", "deploy/test", ".ci/run"):
        assert os.access(CHECKOUT / script, os.X_OK), f"{script} is not executable"


@pytest.mark.timeout(120)
def test_tour_shows_each_run_succeeded() -> None:
    # What `./deploy/try --once` runs once the set-up is made; `.ci/run` makes the set-up.
    tour = subprocess.run(
        [sys.executable, CHECKOUT / "deploy" / "tour.py", "--once"],
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert tour.returncode == 0, tour.stdout + tour.stderr
    states = re.findall(r"^  \S.*?  (\w+) +(succeeded|failed|\w+ing)\b", tour.stdout, re.MULTILINE)
    flows = ("activity", "pushed", "sales", "disk_free", "daily_report")
    assert dict(states) == dict.fromkeys(flows, "succeeded")
    assert "notification received: files done: 1" in tour.stdout


def test_generated_tables_say_what_the_code_says() -> None:
    assert rewritten(TEXT) == TEXT, "run: python -m tests.readme"


def test_every_command_named_exists() -> None:
    help_text = turnout("--help").stdout
    typed = re.findall(r"^turnout ([a-z]+)", "\n".join(block.text for block in BLOCKS), re.M)
    for command in {*re.findall(r"`turnout ([a-z]+)", TEXT), *typed} - {"serves"}:
        assert re.search(rf"^  {command} ", help_text, re.MULTILINE), f"turnout {command}"


def test_the_guarantee_stands_in_the_agreed_words() -> None:
    words = " ".join(TEXT.replace("*", "").split())
    assert (
        "One run per accepted event within the dedupe window; steps at least once until recorded, "
        "never after; outside effects at least once, with a key." in words
    )
    assert "A redelivery after the window runs again." in words
    assert "exactly once" not in words.lower()
