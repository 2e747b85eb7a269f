"""Tables of figures: for a terminal, for RESULTS.md, and as JSON to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .measure import Spread

Cell = str | Spread | float | None


@dataclass(frozen=True, slots=True)
class Goal:
    """What must hold, what was found, and whether it did."""

    text: str
    found: float
    holds: bool


@dataclass(slots=True)
class Plot:
    """What is drawn of a table: lines of points, into `plots/NAME.png`."""

    across: str
    up: str
    name: str
    logarithmic: bool = False
    lines: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, line: str, across: float, up: float) -> None:
        """Add a point."""
        self.lines.setdefault(line, []).append((across, up))


@dataclass(slots=True)
class Table:
    """The answer to one question."""

    question: str
    title: str
    columns: Sequence[str]
    rows: list[list[Cell]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
    plot: Plot | None = None

    def add(self, *cells: Cell) -> None:
        """Add a row."""
        assert len(cells) == len(self.columns), cells
        self.rows.append(list(cells))

    def at_least(self, text: str, found: float, bound: float) -> None:
        """Judge a goal that is a lower bound."""
        self.goals.append(Goal(f"{text} ≥ {bound:g}", found, found >= bound))

    def at_most(self, text: str, found: float, bound: float) -> None:
        """Judge a goal that is an upper bound."""
        self.goals.append(Goal(f"{text} ≤ {bound:g}", found, found <= bound))

    def kept(self) -> dict[str, Any]:
        """Return it as JSON values."""
        made = asdict(self)
        made["rows"] = [[shown(cell) for cell in row] for row in self.rows]
        return made


def number(value: float) -> str:
    """Write a number with as many digits as mean something."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.1 else f"{value:.2g}"


def shown(cell: Cell) -> str:
    """Write a cell: a spread as median and extremes."""
    if cell is None:
        return "-"
    if isinstance(cell, Spread):
        if cell.low == cell.high:
            return number(cell.median)
        return f"{number(cell.median)} ({number(cell.low)}..{number(cell.high)})"
    if isinstance(cell, int):
        return f"{cell:,}"
    return cell if isinstance(cell, str) else number(cell)


def text_of(kept: dict[str, Any]) -> str:
    """Return a kept table as aligned text, which is also Markdown."""
    rows: list[list[str]] = [list(kept["columns"]), *kept["rows"]]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = [_line(rows[0], widths), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
    lines += [_line(row, widths) for row in rows[1:]]
    return "\n".join([f"### ({kept['question']}) {kept['title']}", "", *lines, *_remarks(kept)])


def _line(row: list[str], widths: list[int]) -> str:
    cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    return "| " + " | ".join(cells) + " |"


def _remarks(kept: dict[str, Any]) -> list[str]:
    lines = [""]
    for goal in kept["goals"]:
        verdict = "reached" if goal["holds"] else "**not reached**"
        lines.append(f"* goal: {goal['text']}: {number(goal['found'])}, {verdict}")
    lines += [f"* **not measured**: {name}: {why}" for name, why in kept.get("lost", {}).items()]
    lines += [f"* {note}" for note in kept["notes"]]
    return lines if len(lines) > 1 else []
