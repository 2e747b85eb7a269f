"""Instants for people: local time, or UTC with `--utc`, and never without its offset."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

_UTC = "turnout.cli.utc"
_WRITTEN = re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00:00)")


def _choose(context: click.Context, _option: click.Parameter, chosen: bool) -> None:
    if chosen:
        context.meta[_UTC] = True


utc_option = click.option(
    "--utc", is_flag=True, expose_value=False, callback=_choose, help="Times in UTC.  [local time]"
)


def at_hand(value: datetime | str) -> datetime:
    """Return an instant, of a document or of a run, in the zone that people read."""
    instant = datetime.fromisoformat(value) if isinstance(value, str) else value
    context = click.get_current_context(silent=True)
    is_utc = context is not None and context.meta.get(_UTC, False)
    return instant.astimezone(UTC if is_utc else None)


def stamp(value: datetime | str | None) -> str:
    """Format an instant in full: `2026-01-31 10:00:00+01:00`."""
    return "" if value is None else at_hand(value).isoformat(sep=" ", timespec="seconds")


def brief(value: datetime | str | None) -> str:
    """Format an instant as a column does; an offset other than that of now stands there."""
    from turnout.service.domain.clock import wall_clock

    if value is None:
        return ""
    now = wall_clock()()
    offset, cells = column_of([value], now)
    return cells[0] if offset == offset_of(at_hand(now)) else f"{cells[0]}{offset}"


def with_local_times(sentence: str) -> str:
    """Return a sentence of turnout's own with its instants as people read them."""
    return _WRITTEN.sub(lambda found: stamp(found[0]), sentence)


def with_brief_times(sentence: str) -> str:
    """Return such a sentence as short as a cell wants it."""
    return _WRITTEN.sub(lambda found: brief(found[0]), sentence).removeprefix("for its time, ")


def column_of(values: Sequence[Any], now: datetime) -> tuple[str, list[str]]:
    """Return the offset of a column of instants, for its heading, and its cells.

    The year is left out where it is this year, the seconds where it is not, as `ls` does; an offset
    that not all of them share stands in each cell.
    """
    known = [None if value is None else at_hand(value) for value in values]
    present = [each for each in known if each is not None]
    offsets = {offset_of(each) for each in present}
    this_year = all(each.year == at_hand(now).year for each in present)
    form = "%m-%d %H:%M:%S" if this_year else "%Y-%m-%d %H:%M"
    shared = offsets.pop() if len(offsets) == 1 else ""
    cells = [
        "" if each is None else each.strftime(form) + ("" if shared else offset_of(each))
        for each in known
    ]
    return shared, cells


def offset_of(instant: datetime) -> str:
    """Return the offset of an instant: `+01:00`."""
    return instant.isoformat()[-6:]
