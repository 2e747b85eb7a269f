"""Acting on one run by its id or on every run that matches filters, for the commands that do.

A bulk action asks first, with the count. A refusal for one run does not stop the others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from turnout.service.domain.errors import NotFound, Refused

from .options import ask, chosen, run_async, states_of
from .output import complain, print_json, progress, say

if TYPE_CHECKING:
    from turnout.service.domain.run import Run, RunState
    from turnout.service.journal.records import Filter
    from turnout.service.settings import Settings

    from .session import Session

Act = Callable[["Session", str], Awaitable[Any]]

run_ids = click.argument("run_ids", nargs=-1, metavar="[RUN]...")


def act_on_runs(
    settings: Settings, verb: str, run_ids: tuple[str, ...], filters: dict[str, str],
    states: frozenset[RunState] | None, act: Act,
    check: Callable[[Sequence[str]], None] | None = None, *, yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Act on the named runs or on the matching ones; `states` None means dead letters.

    `check` gets their ids first and may ask the user.
    """
    if bool(run_ids) == bool(filters):
        raise click.UsageError(
            f"name the runs to {verb}, or select them with filters such as --flow"
        )
    if not filters:
        ids = run_async(_full_ids(settings, run_ids))
    else:
        which = chosen(filters, dead=True if states is None else None)
        ids = run_async(_matching(settings, which, states))
        if not ids:
            say("no runs match" if states is not None else "no dead letters match")
            return
        noun = "run" if states is not None else "dead letter"
        ask(f"{verb} {len(ids)} {noun}{'s' * (len(ids) != 1)}?", yes=yes)
    if check is not None:
        check(ids)
    if run_async(_act_on(settings, verb, ids, act, as_json=as_json)):
        raise SystemExit(1)


async def _full_ids(settings: Settings, run_ids: Sequence[str]) -> list[str]:
    """Complete shortened run ids; an id that is not found stays as it is."""
    from .session import open_journal_reader

    async with open_journal_reader(settings) as reader:
        found = [await reader.run(run_id) for run_id in run_ids]
    return [run_id if run is None else run.id for run_id, run in zip(run_ids, found, strict=True)]


async def _matching(
    settings: Settings, which: Filter, states: frozenset[RunState] | None
) -> list[str]:
    from dataclasses import replace

    from turnout.service.operate.filters import all_runs

    from .session import open_journal_reader

    selected = [None] if states is None else states_of(which.state, states)
    async with open_journal_reader(settings) as reader:
        return [
            run.id
            for state in selected
            async for run in all_runs(reader, replace(which, state=state or which.state))
        ]


async def not_undone(settings: Settings, run_ids: Sequence[str]) -> list[Run]:
    """Return the runs whose effects are not undone."""
    from turnout.service.operate.operator import is_not_undone

    from .session import open_journal_reader

    async with open_journal_reader(settings) as reader:
        runs = [await reader.run(run_id) for run_id in run_ids]
    return [run for run in runs if run is not None and is_not_undone(run)]


def ask_of_not_undone(runs: Sequence[Run], *, yes: bool) -> bool:
    """Ask before replaying runs that are not undone; returns whether there are any."""
    if runs:
        names = ", ".join(run.id for run in runs)
        ask(
            f"These runs are not undone, and a replay repeats their effects with new idempotency "
            f"keys: {names}. `turnout retry` finishes their undo. Replay anyway?",
            yes=yes,
        )
    return bool(runs)


async def _act_on(settings: Settings, verb: str, ids: list[str], act: Act, *, as_json: bool) -> int:
    from .session import open_session

    refused = 0
    async with open_session(settings) as session:
        with progress(ids, verb) as turns:
            for run_id in turns:
                try:
                    done = await act(session, run_id)
                except (NotFound, Refused) as error:
                    complain(str(error))
                    refused += 1
                    continue
                _report(run_id, done, as_json=as_json, terse=len(ids) > 1)
    if len(ids) > 1:
        complain(f"{verb}: {len(ids) - refused} done, {refused} refused")
    return refused


def _report(run_id: str, done: Any, *, as_json: bool, terse: bool) -> None:
    if as_json:
        print_json(done if isinstance(done, dict) else {"run": run_id, "runs": done})
    elif isinstance(done, dict):
        if not terse:
            say(f"run {done['id']} of {done['flow']} is now {_state_of(done)}")
    else:
        say(f"run {run_id} replayed as {', '.join(done)}")


def _state_of(run: dict[str, Any]) -> str:
    return f"{run['state']}, undo running" if run["undo"] == "running" else str(run["state"])
