"""The conditions of a run are asked without effect until all of them have said yes.

For each pair of conditions of which the later one refuses: what the earlier one would have done is
not done, so everything but the decision is as it was before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.journal.test_sqlite import opened
from tests.support.journal_conditions import asked
from tests.support.journal_contract import NOW, S, at, make_event, make_run, put
from turnout.service.domain.conditions import Conditions, RateLimitRule
from turnout.service.domain.decisions import Reason
from turnout.service.domain.errors import QueueFull
from turnout.service.journal.contract import Journal
from turnout.service.journal.records import NOTHING, Entry, NewRun

HOURLY = RateLimitRule("rate_limit", True, 1, timedelta(hours=1), 'rate_limit("1/h")')
DAILY = RateLimitRule("rate_limit.2", True, 1, timedelta(days=1), 'rate_limit("1/d")')
ALL = Conditions(unique=timedelta(days=7), rate_limits=(HOURLY, DAILY), max_queued=3)

OPEN: Mapping[str, str | None] = {
    "unique": "new", "mode": None, "rate_limit": "new", "rate_limit.2": "new"
}  # fmt: skip
"""The keys of a run that every condition lets pass."""

FULL = "full"


def new_run(conditions: Conditions, keys: Mapping[str, str] = NOTHING) -> NewRun:
    return asked(conditions, {**OPEN, **keys})


def everything(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows of a journal, by table."""
    connection = apsw.Connection(str(next(folder.rglob("journal.db"))), apsw.SQLITE_OPEN_READONLY)
    tables = [
        str(row[0])
        for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
    ]
    found = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in tables}
    connection.close()
    return found


async def filled(journal: Journal, later: str) -> None:
    """Give the journal what the earlier conditions act on, and what makes the later one refuse."""
    running = make_run(state=S.RUNNING, keys={"mode": "busy"})
    await put(journal, running)
    for state in (S.RUNNING, S.QUEUED):
        await put(journal, make_run(state=state, keys={"mode": "acted on"}))
    refusing = {
        "unique": {"unique": "taken"},
        "rate_limit": {"rate_limit": "taken"},
        "rate_limit.2": {"rate_limit.2": "taken"},
    }.get(later)
    if refusing is not None:
        keys = {"unique": "other", "rate_limit": "other", "rate_limit.2": "other"} | refusing
        held = new_run(replace(ALL, max_queued=None), keys)
        await put(journal, held)
    if later == FULL:
        for _ in range(4):
            await put(journal, asked(Conditions(max_queued=99)))


@pytest.mark.parametrize(
    ("earlier", "later", "reason"),
    [
        ("unique", "skip", Reason.SKIP),
        ("unique", "rate_limit", Reason.RATE_LIMIT),
        ("unique", FULL, None),
        ("replace", "rate_limit", Reason.RATE_LIMIT),
        ("replace", FULL, None),
        ("latest", "rate_limit", Reason.RATE_LIMIT),
        ("latest", FULL, None),
        ("skip", "rate_limit", Reason.RATE_LIMIT),
        ("skip", FULL, None),
        ("rate_limit", "rate_limit.2", Reason.RATE_LIMIT),
        ("rate_limit", FULL, None),
        ("replace", "unique", Reason.UNIQUE),
        ("latest", "unique", Reason.UNIQUE),
    ],
)
async def test_a_refusal_leaves_everything_as_it_was(
    tmp_path: Path, earlier: str, later: str, reason: Reason | None
) -> None:
    modes: Mapping[str, Any] = {"skip": "skip", "replace": "replace", "latest": "latest"}
    mode = modes.get(earlier) or modes.get(later)
    conditions = replace(ALL, mode=mode)
    keys = {} if earlier not in ("replace", "latest") else {"mode": "acted on"}
    if later == "skip":
        keys["mode"] = "busy"
    elif later != FULL:
        keys[later] = "taken"
    async with opened(tmp_path) as journal:
        await filled(journal, later)
        before = everything(tmp_path)
        run = new_run(conditions, keys)
        entry = Entry(event=make_event("new"), runs=[run])
        if reason is None:
            with pytest.raises(QueueFull):
                await journal.append([entry], now=at(1))
            assert everything(tmp_path) == before, "not even the decision is stored"
            return
        [appended] = await journal.append([entry], now=at(1))
        assert appended.refused[run.id].reason is reason
        assert not appended.cancelled and not appended.skipped
        after = everything(tmp_path)
        for table, new in {"events": 1, "dedupe": 1, "decisions": 1, "runs": 1}.items():
            assert after[table][: len(before[table])] == before[table], table
            assert len(after.pop(table)) == len(before.pop(table)) + new, table
        assert after == before
        passed = new_run(conditions)
        [appended] = await journal.append([Entry(event=make_event(), runs=[passed])], now=at(2))
        assert not appended.refused, "what the refused run asked for is free"


async def test_a_run_that_passes_does_all_of_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await filled(journal, "")
        before = everything(tmp_path)
        passed = new_run(replace(ALL, mode="replace"), {"mode": "acted on"})
        [appended] = await journal.append([Entry(event=make_event(), runs=[passed])], now=NOW)
        assert len(appended.cancelled) == 2 and not appended.refused
        after = everything(tmp_path)
        for table, rows in {"unique_keys": 1, "accepted_runs": 2}.items():
            assert len(after[table]) == len(before[table]) + rows
