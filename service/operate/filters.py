"""Filters for runs and events: the same in query parameters and CLI options.

Pure: text in, a journal `Filter` out, or `InvalidData` naming the filter that cannot be read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from turnout.service.domain.errors import InvalidData, SetupError
from turnout.service.domain.run import Run, RunState
from turnout.service.domain.units import is_duration, parse_duration
from turnout.service.journal.records import Filter

if TYPE_CHECKING:
    from turnout.service.journal.contract import Reads

MAX_LIMIT = 1000


def read_filter(
    *,
    now: datetime,
    flow: str | None = None,
    state: str | None = None,
    trigger: str | None = None,
    event: str | None = None,
    owner: str | None = None,
    tag: str | None = None,
    since: str | None = None,
    until: str | None = None,
) -> Filter:
    """Return the journal filter; raises `InvalidData` naming the invalid one."""
    if state is not None and state not in list(RunState):
        raise InvalidData(f"state is one of {', '.join(RunState)}, not {state!r}", field="state")
    return Filter(
        flow=flow,
        state=None if state is None else RunState(state),
        trigger=trigger,
        event=event,
        owner=owner,
        tag=tag,
        since=None if since is None else read_instant(since, now=now, field="since"),
        until=None if until is None else read_instant(until, now=now, field="until"),
    )


def query_of(which: Filter) -> dict[str, str | None]:
    """Return the filters of `which` by name, as `read_filter` reads them."""
    return {
        "flow": which.flow,
        "state": which.state,
        "trigger": which.trigger,
        "event": which.event,
        "owner": which.owner,
        "tag": which.tag,
        "since": None if which.since is None else which.since.isoformat(),
        "until": None if which.until is None else which.until.isoformat(),
    }


def page_of(which: Filter, *, limit: int, cursor: str | None) -> Filter:
    """Return the filter for one page of `which`; raises `InvalidData`."""
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidData(f"limit is 1 to {MAX_LIMIT}, not {limit}", field="limit")
    if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise InvalidData("cursor is the `next` of the previous page, unchanged", field="cursor")
    return replace(which, limit=limit, cursor=None if cursor is None else int(cursor))


def read_instant(text: str, *, now: datetime, field: str) -> datetime:
    """Read `2026-01-31`, `2026-01-31T09:00:00Z` (UTC by default) or an age: `2h`."""
    if is_duration(text):
        try:
            return now - parse_duration(text)
        except SetupError as error:
            raise InvalidData(f"{field}: {error.message}", field=field) from None
    try:
        instant = datetime.fromisoformat(text)
        return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidData(
            f'{field} is an instant such as 2026-01-31T09:00:00Z or an age such as "2h", '
            f"not {text!r}",
            field=field,
        ) from None


async def all_runs(
    reader: Reads, which: Filter, *, at_most: int | None = None
) -> AsyncIterator[Run]:
    """Yield every matching run, or the first `at_most`, newest first, a page at a time."""
    async for page in pages_of_runs(reader, which, at_most=at_most):
        for run in page:
            yield run


async def pages_of_runs(
    reader: Reads, which: Filter, *, at_most: int | None = None
) -> AsyncIterator[list[Run]]:
    """Yield every matching run, or the first `at_most`, newest first, in pages."""
    left = at_most
    cursor = None
    while left is None or left > 0:
        size = MAX_LIMIT if left is None else min(left, MAX_LIMIT)
        runs = await reader.runs(replace(which, limit=size, cursor=cursor))
        if runs:
            yield runs
        if len(runs) < size:
            return
        cursor = runs[-1].seq
        left = None if left is None else left - size
