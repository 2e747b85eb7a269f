"""Terminal captures: what lists of thirty mixed runs look like at 80 and at 120 columns.

`python -m tests.cli.captures` writes them anew; `git diff` shows what that changes.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

from tests.support.program import Program, until
from turnout.service.cli import cli, tables
from turnout.service.domain.clock import TEST_CLOCK

from .mixed_runs import NOW, make, run_id

FOLDER = Path(__file__).parent / "captures"
WIDTHS = (80, 120)
COMMANDS: dict[str, Sequence[str]] = {
    "runs": ["runs"],
    "runs-utc": ["runs", "--utc", "--limit", "3"],
    "events": ["events"],
    "dead": ["dead"],
    "triggers": ["triggers"],
    "approvals": ["approvals"],
    "graph": ["graph", run_id(22)[-8:]],
    "graph-mermaid": ["graph", run_id(22)[-8:], "--mermaid"],
    "show-failed": ["show", run_id(21)[-8:]],
    "show-undo-failed": ["show", run_id(25)[-8:]],
    "show-waiting": ["show", run_id(4)[-8:]],
    "show-retrying": ["show", run_id(23)[-8:]],
}

_FLOWS = """
from turnout import cron, event, every, files, flow, kafka, secret, webhook

@flow(on=cron("0 9 * * *"))
def send_the_report() -> None: ...

@flow(on=every("15m"))
def poll_the_partner() -> None: ...

@flow(on=files("/srv/inbox/*.csv"))
def import_addresses() -> None: ...

@flow(on=kafka("orders", group="billing"))
def charge() -> None: ...

@flow(on=webhook("/github", verify="github", secret=secret("GITHUB_HMAC")))
def build() -> None: ...

@flow(on=[webhook("/orders", verify="none"), event("order.placed")])
def place_order() -> None: ...
"""
_SETTINGS = {
    "GITHUB_HMAC": "5c9b2f61d0a84e37b1c6",
    "TURNOUT_PUBLIC_URL": "https://turnout.example.com",
}


def captures(name: str) -> dict[str, str]:
    """Return what a command prints, by the name of its file: one for each width."""
    folder = _journal()
    with _at_the_same_time_and_place(folder):
        data = _served().data if name == "triggers" else folder / "data"
        return {f"{name}-{width}.txt": _capture(COMMANDS[name], data, width) for width in WIDTHS}


@functools.cache
def _journal() -> Path:
    """Return the folder of the journal, the same for all captures: they only read."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    make(folder / "data")
    return folder


@functools.cache
def _served() -> Program:
    """Return a program that serves triggers of all kinds on the same journal.

    Two are down, one as an operator wants it; one has refused some senders.
    """
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    make(folder / "data")
    (folder / "flows.py").write_text(_FLOWS)
    note = ("--by", "ada", "--note", "the bank migrates")
    pause = ["pause", "kafka:orders/billing", *note, "--data", str(folder / "data")]
    with contextlib.redirect_stdout(io.StringIO()):
        cli.main(args=pause, standalone_mode=False)
    env = _SETTINGS | {name: os.environ[name] for name in (TEST_CLOCK, "TZ")}
    program = Program(
        flows=folder / "flows.py", data=folder / "data", log=folder / "log", env=env
    ).start()
    atexit.register(program.kill)
    until(lambda: program.ask("/healthz"), 20, "it serves")
    for _ in range(12):
        until(lambda: program.ask("/hooks/github", method="POST", body=b"{}"), 20, "it answers")
    until(lambda: "cannot watch" in program.log_text(), 20, "a trigger is down")
    return program


def _capture(words: Sequence[str], data: Path, width: int) -> str:
    printed = io.StringIO()
    with (
        patch.object(tables, "terminal_width", lambda: width),
        contextlib.redirect_stdout(printed),
    ):
        cli.main(args=[*words, "--data", str(data)], standalone_mode=False)
    return printed.getvalue()


@contextlib.contextmanager
def _at_the_same_time_and_place(folder: Path) -> Iterator[None]:
    """Let commands believe that it is `NOW` in Berlin."""
    clock = folder / "clock"
    clock.write_text(f"-{int((datetime.now(UTC) - NOW).total_seconds())}s")
    zone = os.environ.get("TZ")
    with patch.dict(os.environ, {TEST_CLOCK: str(clock), "TZ": "Europe/Berlin"}):
        time.tzset()
        try:
            yield
        finally:
            os.environ.pop("TZ")
            if zone is not None:
                os.environ["TZ"] = zone
            time.tzset()


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for command in COMMANDS:
        for file, text in captures(command).items():
            (FOLDER / file).write_text(text, "utf-8")
