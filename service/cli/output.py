"""Output of commands: text for people, JSON Lines for programs, errors as one line on stderr.

Stored data comes from outside. Control characters (an escape sequence in a webhook's body) are
escaped before they reach a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console


WORKING_AFTER_SECONDS = 1.0


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


def heading(text: str) -> None:
    """Print the title of a section."""
    click.echo("\n" + click.style(safe(text), bold=True))


def console() -> Console:
    """Return a rich console on stderr, for what is under way."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, emoji=False)


@contextmanager
def progress(items: Sequence[Any], title: str) -> Iterator[Iterator[Any]]:
    """Iterate over `items`, with a progress bar on stderr if that is a terminal."""
    if not sys.stderr.isatty():
        yield iter(items)
        return
    from rich.progress import track

    yield iter(track(items, title, console=console(), transient=True))


def took(started_at: datetime | None, finished_at: datetime | None) -> str:
    """Format how long something took."""
    if started_at is None or finished_at is None:
        return ""
    from turnout.service.domain.units import format_duration

    return format_duration(finished_at - started_at)


@contextmanager
def working(doing: str) -> Iterator[None]:
    """Say on a terminal what goes on inside the block, if that takes more than a second."""
    if not sys.stderr.isatty():
        yield
        return
    from threading import Timer

    shown: list[Any] = []

    def show() -> None:
        shown.append(console().status(f"{doing} …"))
        shown[0].start()

    timer = Timer(WORKING_AFTER_SECONDS, show)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        for status in shown:
            status.stop()


@contextmanager
def telling() -> Iterator[Callable[[str], None]]:
    """Yield what shows on a terminal, in one line, what is being done now."""
    if not sys.stderr.isatty():
        yield lambda _doing: None
        return
    with console().status("") as status:
        yield status.update


def lasted(started_at: datetime | None, finished_at: datetime | None) -> str:
    """Format how long something took in one or two units: 350ms, 2.1s, 3m5s, 2d4h."""
    if started_at is None or finished_at is None:
        return ""
    seconds = (finished_at - started_at).total_seconds()
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, hours = divmod(round(seconds), 60), round(seconds / 60)
    if hours < 60:
        return f"{minutes[0]}m{minutes[1]}s"
    if hours < 24 * 60:
        return f"{hours // 60}h{hours % 60}m"
    return f"{hours // 1440}d{hours % 1440 // 60}h"


def told(error: Exception) -> str:
    """Return an error and what was noted about it, as one line."""
    return "; ".join([str(error), *getattr(error, "__notes__", ())])


def short(text: str, limit: int = 200) -> str:
    """Return the first line of a text, cut at `limit` characters."""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= limit else line[: limit - 1] + "…"


def print_facts(*facts: tuple[str, object]) -> None:
    """Print (name, value) pairs, one a line, without empty values."""
    for name, value in facts:
        if value not in (None, ""):
            click.echo(click.style(f"{name:<9} ", dim=True) + safe(value))


def show_receipt(receipt: dict[str, Any]) -> None:
    """Print what became of an event."""
    runs = ", ".join(receipt["runs"]) or "none"
    say(f"event {receipt['event']}{' (a duplicate)' * receipt['duplicate']}; runs: {runs}")
    for flow, window in receipt.get("windows", {}).items():
        say(f"flow {flow} collects it in window {window}")
    for flow, reason in receipt.get("refusals", {}).items():
        complain(f"flow {flow} refused it: {reason}")
