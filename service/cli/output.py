"""Output of commands: tables for people, JSON Lines for programs, errors as one line on stderr.

Stored data comes from outside. Control characters (an escape sequence in a webhook's body) are
escaped before they reach a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

_PIPE_WIDTH = 250

_COLOURS = {
    "succeeded": "green", "failed": "red", "cancelled": "yellow", "skipped": "bright_black",
    "running": "cyan", "retrying": "yellow", "waiting": "blue", "queued": "blue",
    "scheduled": "blue", "up": "green", "down": "red", "paused": "yellow",
}  # fmt: skip


def safe(text: object) -> str:
    """Return text with the control characters of a terminal escaped."""
    from turnout.service.telemetry.unseen import IN_TEXT, python_escape

    return IN_TEXT.sub(python_escape, str(text))


def print_json(document: Any) -> None:
    """Print one document as one line of JSON, escaped for a terminal."""
    from turnout.service.operate.documents import encode
    from turnout.service.telemetry.unseen import IN_LINE, json_escape

    line = encode(document).decode("utf-8")
    click.echo(IN_LINE.sub(json_escape, line))


def say(text: str) -> None:
    """Print a line for people."""
    click.echo(safe(text))


def complain(text: str) -> None:
    """Print an error or a note on stderr."""
    click.echo(safe(text), err=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print rows under column names; states in colour; `empty` when there are none."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    listed = list(rows)
    if not listed:
        say(empty)
        return
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        drawn.add_column(column, overflow="fold", no_wrap=number == 0 or column.endswith("(UTC)"))
    for row in listed:
        drawn.add_row(*(Text(safe(cell), style=_COLOURS.get(str(cell), "")) for cell in row))
    console().print(drawn)


def heading(text: str) -> None:
    """Print the title of a section."""
    click.echo("\n" + click.style(safe(text), bold=True))


def console(*, stderr: bool = False) -> Console:
    """Return a rich console; wide without a terminal, so that no value is cut."""
    from rich.console import Console

    return Console(
        width=None if sys.stdout.isatty() else _PIPE_WIDTH, stderr=stderr,
        markup=False, highlight=False, emoji=False,
    )  # fmt: skip


@contextmanager
def progress(items: Sequence[Any], title: str) -> Iterator[Iterator[Any]]:
    """Iterate over `items`, with a progress bar on stderr if that is a terminal."""
    if not sys.stderr.isatty():
        yield iter(items)
        return
    from rich.console import Console
    from rich.progress import track

    yield iter(track(items, title, console=Console(stderr=True), transient=True))


def clock(value: datetime | None) -> str:
    """Format an instant for a table: UTC, to the second, without the year."""
    return "" if value is None else value.astimezone(UTC).strftime("%m-%d %H:%M:%S")


def took(started_at: datetime | None, finished_at: datetime | None) -> str:
    """Format how long something took."""
    if started_at is None or finished_at is None:
        return ""
    from turnout.service.domain.units import format_duration

    return format_duration(finished_at - started_at)


def short(text: str, limit: int = 200) -> str:
    """Return the first line of a text, cut at `limit` characters."""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= limit else line[: limit - 1] + "…"


def print_facts(*facts: tuple[str, object]) -> None:
    """Print (name, value) pairs, one a line, without empty values."""
    for name, value in facts:
        if value not in (None, ""):
            click.echo(click.style(f"{name:<9} ", dim=True) + safe(value))


def show_receipt(receipt: dict[str, Any], *, as_json: bool) -> None:
    """Print what became of an event."""
    if as_json:
        print_json(receipt)
        return
    runs = ", ".join(receipt["runs"]) or "none"
    say(f"event {receipt['event']}{' (a duplicate)' * receipt['duplicate']}; runs: {runs}")
    for flow, reason in receipt.get("refusals", {}).items():
        complain(f"flow {flow} refused it: {reason}")
