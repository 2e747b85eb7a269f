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
from typing import Any
from unittest.mock import patch

from turnout.service.cli import cli, session, tables
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

_BASE = "https://turnout.example.com"


def _trigger(name: str, **told: Any) -> dict[str, Any]:
    """Return a trigger as the API tells it."""
    known: dict[str, Any] = {
        "name": name, "kind": name.partition(":")[0], "flows": ["bill"], "up": True,
        "problem": None, "last_error": None, "lag": {}, "figures": {}, "paused_at": None,
        "pause": None, "address": None, "next_at": None, "last_event_at": None, "refused": 0,
        "rejected": {},
    }  # fmt: skip
    return known | told


TRIGGERS = [
    _trigger("cron:0 9 * * *", next_at="2026-03-15T08:00:00Z", flows=["nightly_report"],
             last_event_at="2026-03-14T08:00:00Z"),
    _trigger("event:order.placed", flows=["bill", "notify"], last_event_at="2026-03-14T09:20:01Z"),
    _trigger("every:15m", next_at="2026-03-14T09:30:00Z", flows=["poll_the_partner"],
             last_event_at="2026-03-14T09:15:00Z"),
    _trigger("files:/srv/inbox/*.csv", flows=["import_customer_addresses"], up=False,
             problem="/srv/inbox cannot be read: Permission denied"),
    _trigger("kafka:orders/billing", up=False,
             pause={"until": "2026-03-14T12:00:00Z", "by": "ada", "note": "the bank migrates"},
             last_event_at="2025-12-31T23:59:59Z"),
    _trigger("webhook:/github", address=f"{_BASE}/hooks/github", refused=12, flows=["notify"],
             last_event_at="2026-03-14T09:26:50Z", rejected={"unverified": 12}),
    _trigger("webhook:/orders", address=f"{_BASE}/hooks/orders",
             last_event_at="2026-03-14T09:26:52Z"),
]  # fmt: skip
"""Triggers of all kinds, as a running service tells them."""


def captures(name: str) -> dict[str, str]:
    """Return what a command prints, by the name of its file: one for each width."""
    folder = _journal()
    with _at_the_same_time_and_place(folder):
        return {
            f"{name}-{width}.txt": _capture(COMMANDS[name], folder / "data", width)
            for width in WIDTHS
        }


@functools.cache
def _journal() -> Path:
    """Return the folder of the journal, the same for all captures: they only read."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    make(folder / "data")
    return folder


def _capture(words: Sequence[str], data: Path, width: int) -> str:
    printed = io.StringIO()
    service = patch.object(session, "list_from_service", lambda *_: TRIGGERS)
    with (
        patch.object(tables, "terminal_width", lambda: width),
        service,
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
