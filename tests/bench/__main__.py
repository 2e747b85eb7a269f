"""`python -m tests.bench [--only a,b] [--quick] [--json] [--huge]`: measure, print, keep.

Each question is a module that returns tables. Results are kept in `results.json`, so that a part
can be measured again; `RESULTS.md` and the plots are always made from all that is kept. A question
that fails does not stop the others; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
import time
import traceback

import pytest

from .measure import Size
from .report import text_of
from .results import keep, write_page

QUESTIONS = {
    "a": "accept",
    "b": "accept",
    "c": "kafka",
    "d": "file_drops",
    "e": "lateness",
    "f": "durable",
    "g": "footprint",
    "h": "growth",
    "i": "spike",
    "j": "mixed",
    "l": "curves",
    "p": "profile_table",
    "q": "queue_to_result",
    "r": "journal",
}


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", default=",".join(QUESTIONS), help=_by_letter())
    parser.add_argument("--quick", action="store_true", help="smaller and fewer rounds; not kept")
    parser.add_argument("--huge", action="store_true", help="10 million rows where size is asked")
    parser.add_argument("--json", action="store_true", help="print JSON Lines instead of tables")
    chosen = parser.parse_args()
    size = Size(quick=chosen.quick, huge=chosen.huge)
    asked = [letter for letter in chosen.only.split(",") if letter]
    unknown = set(asked) - set(QUESTIONS)
    if unknown:
        parser.error(f"no question {', '.join(sorted(unknown))}; there are {', '.join(QUESTIONS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers are ended then too
    failed: list[str] = []
    for module in dict.fromkeys(QUESTIONS[letter] for letter in asked):
        started = time.monotonic()
        try:
            tables = importlib.import_module(f"tests.bench.{module}").run(size)
        except (Exception, pytest.fail.Exception):  # noqa: BLE001  the other questions are asked
            failed.append(module)
            sys.stderr.write(f"{module} could not be measured:\n{traceback.format_exc()}\n")
            continue
        kept = [table.kept() for table in tables]
        for table in kept:
            sys.stdout.write((json.dumps(table) if chosen.json else text_of(table) + "\n") + "\n")
            sys.stdout.flush()
        sys.stderr.write(f"{module} took {time.monotonic() - started:.0f} s\n")
        if not size.quick:
            keep(kept)
    if not size.quick:
        write_page()
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


def _by_letter() -> str:
    return "questions: " + ", ".join(f"{letter} {name}" for letter, name in QUESTIONS.items())


if __name__ == "__main__":
    main()
