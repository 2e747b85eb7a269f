"""What was measured, kept beside the code: `results.json`, and `RESULTS.md` made from it."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apsw

from .measure import Unavailable
from .peers import measured
from .report import number, text_of

FOLDER = Path(__file__).parent
KEPT = FOLDER / "results.json"
PAGE = FOLDER / "RESULTS.md"
PLOTS = FOLDER / "plots"
REMARKS = FOLDER / "remarks"  # written by hand: what was tried, what it would take
HEAD = FOLDER / "results_head.md"


def keep(tables: Sequence[dict[str, Any]]) -> None:
    """Put tables with those kept, each in place of its predecessor."""
    kept: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for table in tables:
        stamp = {"measured": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}
        load = f"{os.getloadavg()[0]:.1f}"
        kept[table["question"]] = table | stamp | {"load_average": load}
    KEPT.write_text(json.dumps(dict(sorted(kept.items())), indent=1, ensure_ascii=False) + "\n")


def write_page() -> None:
    """Write RESULTS.md from what is kept."""
    kept: dict[str, Any] = json.loads(KEPT.read_text())
    machine = (
        f"Measured on {os.cpu_count()} cores, Linux, Python {platform.python_version()}, "
        f"SQLite {apsw.sqlite_lib_version()}."
    )
    parts = [HEAD.read_text().strip(), machine, _goals(kept.values())]
    drawn = any(table.get("plot") for table in kept.values()) and _draw()
    for table in kept.values():
        when = f"_{table['measured']}, load average {table['load_average']} at the end_"
        parts += [text_of(table), when]
        remark = REMARKS / f"{table['question']}.md"
        if remark.exists():
            parts.append(remark.read_text().strip())
        if drawn and table.get("plot"):
            parts.append(f"![{table['title']}](plots/{table['plot']['name']}.png)")
    PAGE.write_text("\n\n".join(parts) + "\n")


def _goals(tables: Iterable[dict[str, Any]]) -> str:
    """Return all goals as one table."""
    lines = ["## Goals", "", "| question | goal | found | |", "|---|---|---|---|"]
    for table in tables:
        for goal in table["goals"]:
            verdict = "reached" if goal["holds"] else "**not reached**"
            found = number(goal["found"])
            lines.append(f"| ({table['question']}) | {goal['text']} | {found} | {verdict} |")
    return "\n".join(lines)


def _draw() -> bool:
    """Draw the plots; says so on stderr where they cannot be drawn."""
    try:
        measured("plot", "plots", str(KEPT), str(PLOTS))
    except Unavailable as error:
        sys.stderr.write(f"no plots: {error}\n")
        return False
    return True
