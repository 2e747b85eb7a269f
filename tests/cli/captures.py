"""Terminal captures: what lists of thirty mixed runs look like at 80 and at 120 columns.

`python -m tests.cli.captures` writes them anew; `git diff` shows what that changes.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

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
    "show-failed": ["show", run_id(21)[-8:]],
    "show-undo-failed": ["show", run_id(25)[-8:]],
    "show-waiting": ["show", run_id(4)[-8:]],
    "show-retrying": ["show", run_id(23)[-8:]],
}


def captures(name: str) -> dict[str, str]:
    """Return what a command prints, by the name of its file: one for each width."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "data")
        with _at_the_same_time_and_place(Path(folder)):
            return {
                f"{name}-{width}.txt": _capture(COMMANDS[name], Path(folder) / "data", width)
                for width in WIDTHS
            }


def _capture(words: Sequence[str], data: Path, width: int) -> str:
    printed = io.StringIO()
    with patch.object(tables, "terminal_width", lambda: width), contextlib.redirect_stdout(printed):
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
