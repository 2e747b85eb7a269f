"""Tables: one line a row, as wide as the terminal.

A terminal gets short ids, and long cells cut at `…`; a pipe or a file gets everything whole.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from unicodedata import combining, east_asian_width

import click

from turnout.service.domain.short_ids import shorten

from .output import safe, say
from .times import column_of, stamp

_GAP = 2
_COMFORTABLE = 22
"""The last column gets so many characters before others are shown in full, or at all."""

_COLOURS = {
    "succeeded": "green", "failed": "red", "cancelled": "yellow", "skipped": "bright_black",
    "running": "cyan", "retrying": "yellow", "waiting": "blue", "queued": "blue",
    "scheduled": "blue", "up": "green", "down": "red", "paused": "yellow",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Column:
    """A column: it may be cut to `least` characters, or left out where there is no room.

    `time` says that its cells are instants.
    """

    name: str
    least: int | None = None
    optional: bool = False
    time: bool = False


def terminal_width() -> int | None:
    """Return how many columns the terminal has, None where the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def short_ids(ids: Collection[str], *, among: int) -> dict[str, str]:
    """Return what is shown for each id: its short form, or all of it where no terminal is."""
    if terminal_width() is None:
        return dict(zip(ids, ids, strict=True))
    return shorten(ids, among=among)


def table(columns: Sequence[Column], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print rows under the names of their columns; states in colour; `empty` without rows."""
    listed = [list(row) for row in rows]
    if not listed:
        say(empty)
        return
    width = terminal_width()
    shown = list(columns)
    names, texts = _texts(shown, listed, whole=width is None)
    if width is not None:
        filled = [index for index in range(len(shown)) if any(row[index] for row in texts)]
        shown, names = [shown[index] for index in filled], [names[index] for index in filled]
        texts = [[row[index] for index in filled] for row in texts]
    natural = [
        max(cells(names[index]), *(cells(row[index]) for row in texts))
        for index in range(len(shown))
    ]
    widths = natural if width is None else fitted(shown, natural, width)
    click.echo(click.style(_line(names, widths), bold=True))
    for row in texts:
        click.echo(_line(row, widths, coloured=True))


def _texts(
    columns: Sequence[Column], rows: Sequence[Sequence[object]], *, whole: bool
) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the cells as text, each on one line."""
    from turnout.service.domain.clock import wall_clock

    names = [column.name for column in columns]
    made = [[_on_one_line(safe("" if cell is None else cell)) for cell in row] for row in rows]
    for index, column in enumerate(columns):
        if not column.time:
            continue
        values = [row[index] or None for row in rows]
        if whole:
            texts = [stamp(value).replace(" ", "T") for value in values]  # type: ignore[arg-type]
        else:
            offset, texts = column_of(values, wall_clock()())
            names[index] = f"{column.name} ({offset})" if offset else column.name
        for row, text in zip(made, texts, strict=True):
            row[index] = text
    return names, made


def _on_one_line(text: str) -> str:
    first, *rest = text.rstrip().split("\n")
    return " ".join([first, *(line.strip() for line in rest)]).replace("\t", " ")


def fitted(columns: Sequence[Column], natural: Sequence[int], width: int) -> list[int]:
    """Return the width of each column so that all fit; 0 leaves a column out."""
    widths = list(natural)
    last = len(columns) - 1
    for index in reversed(range(last)):
        if columns[index].optional and _needed(columns, widths) > width:
            widths[index] = 0
    by_width = sorted(range(last), key=lambda index: -widths[index])
    bounds = [(index, columns[index].least) for index in (*by_width, last)]
    for index, least in [(last, _COMFORTABLE), *bounds]:
        over = total_width(widths) - width
        if over > 0 and least is not None and widths[index] > least:
            widths[index] = max(least, widths[index] - over)
    for index in reversed(range(2, last + 1)):  # a narrow terminal: what a row is, not more of it
        if total_width(widths) > width:
            widths[index] = 0
    while (over := total_width(widths) - width) > 0:
        index = max(range(len(widths)), key=widths.__getitem__)
        widths[index] = max(1, widths[index] - over)
        if max(widths) == 1:
            break
    return widths


def _needed(columns: Sequence[Column], widths: Sequence[int]) -> int:
    """Return how many characters all columns need; one long name leaves no other column out."""
    bounds = [
        width if column.least is None else min(width, max(column.least, _COMFORTABLE))
        for column, width in zip(columns, widths, strict=True)
    ]
    return total_width([*bounds[:-1], min(widths[-1], _COMFORTABLE)])


def total_width(widths: Sequence[int]) -> int:
    """Return how wide a line is with columns of these widths; one of 0 is left out."""
    used = [width for width in widths if width]
    return sum(used) + _GAP * (len(used) - 1)


def _line(texts: Sequence[str], widths: Sequence[int], *, coloured: bool = False) -> str:
    parts = []
    for text, width in zip(texts, widths, strict=True):
        if width:
            cut = cut_to(text, width)
            padding = " " * (width - cells(cut))
            colour = _COLOURS.get(text) if coloured else None
            parts.append((click.style(cut, fg=colour) if colour else cut) + padding)
    return (" " * _GAP).join(parts).rstrip()


def cut_to(text: str, width: int) -> str:
    """Return a text cut at `…` to so many cells of a terminal."""
    if cells(text) <= width:
        return text
    shown, used = [], 0
    for character in text:
        used += _cells_of(character)
        if used > width - 1:
            break
        shown.append(character)
    return "".join(shown).rstrip() + "…"


def cells(text: str) -> int:
    """Return how many cells of a terminal a text takes."""
    return len(text) if text.isascii() else sum(map(_cells_of, text))


def _cells_of(character: str) -> int:
    if combining(character):
        return 0
    return 2 if east_asian_width(character) in "WF" else 1
