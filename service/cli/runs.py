"""`turnout runs`, `retry` and `cancel`. Listing reads the journal, with or without a service."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

import click

from .bulk import act_on_runs, run_ids
from .options import (
    all_option,
    chosen,
    limit_option,
    run_async,
    with_filters,
    with_json,
    with_settings,
    yes_option,
)
from .output import clock, complain, print_json, short, table, took
from .show import undo_words

if TYPE_CHECKING:
    from turnout.service.domain.run import Run
    from turnout.service.journal.records import Filter
    from turnout.service.settings import Settings

    from .session import Session


@click.command()
@with_filters
@limit_option
@all_option
@with_json
@with_settings
def runs(
    settings: Settings, filters: dict[str, str], limit: int, everything: bool, as_json: bool
) -> None:
    """List runs, newest first.

    \b
    turnout runs
    turnout runs --flow bill --state failed --since 1d
    turnout runs --all --json | jq -r .id
    """
    which = chosen(filters)
    run_async(list_runs(settings, which, None if everything else limit, as_json=as_json))


async def list_runs(settings: Settings, which: Filter, limit: int | None, *, as_json: bool) -> None:
    """Print matching runs or dead letters, newest first."""
    from turnout.service.operate.filters import all_runs

    from .session import open_journal_reader

    found: list[Run] = []
    count = 0
    async with open_journal_reader(settings) as reader:
        async for run in all_runs(reader, which, at_most=limit):
            count += 1
            if as_json:
                print_json(run.as_dict())
            else:
                found.append(run)
    if not as_json:
        noun = "dead letter" if which.dead else "run"
        table(
            ("run", "flow", "state", "attempts", "queued (UTC)", "took", "error"),
            (_run_row(run) for run in found),
            empty=f"no {noun}s match",
        )
        if count == limit:
            complain(f"these are the newest {limit}; --limit or --all shows more")


def _state(run: Run) -> str:
    due = run.as_dict()["due_at"] and run.due_at
    return str(run.state) if due is None else f"{run.state} until {clock(due)}"


def _run_row(run: Run) -> tuple[object, ...]:
    why = run.reason or ""
    if run.error is not None:
        why = f"{run.error.type}: {run.error.message}"
    if run.undo in ("running", "failed"):
        why = f"undo: {undo_words(run.undo, run.undo_failed)}; {why}".removesuffix("; ")
    return (
        run.id, run.flow, _state(run), run.attempts, clock(run.queued_at),
        took(run.started_at, run.finished_at), short(why, 120),
    )  # fmt: skip


@click.command()
@run_ids
@click.option("--from", "from_step", metavar="STEP", help="Run again from this step on (its key).")
@with_filters
@yes_option
@with_json
@with_settings
def retry(
    settings: Settings, run_ids: tuple[str, ...], from_step: str | None,
    filters: dict[str, str], yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Queue finished runs again; a run that waits for its next try is tried now.

    Recorded steps are not run again. If the undo of a run failed, only the rest of the undo runs.

    \b
    turnout retry 0198c0de-…                 one run
    turnout retry 0198c0de-… --from charge   again from a step (keys: turnout show)
    turnout retry --flow bill --state failed every failed run of a flow
    turnout retry --since 2h --yes           failed runs of the last two hours
    """
    from turnout.service.domain.run import RunState

    def act(session: Session, run_id: str) -> Awaitable[Any]:
        return session.retry(run_id, from_step)

    default = frozenset({RunState.FAILED})
    act_on_runs(settings, "retry", run_ids, filters, default, act, yes=yes, as_json=as_json)


@click.command()
@run_ids
@click.option("--reason", default="", metavar="WHY", help="Why; stored with the run.")
@click.option("--by", metavar="NAME", help="Who cancels.  [default: your user name]")
@with_filters
@yes_option
@with_json
@with_settings
def cancel(
    settings: Settings, run_ids: tuple[str, ...], reason: str, by: str | None,
    filters: dict[str, str], yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Cancel unfinished runs and undo what they did.

    The flow stops, its registered compensations run, then the run ends as cancelled. A run that
    is already being undone cannot be cancelled.

    \b
    turnout cancel 0198c0de-… --reason "ordered twice"
    turnout cancel --flow bill               every unfinished run of a flow
    turnout cancel --flow bill --state queued
    """
    from getpass import getuser

    from turnout.service.domain.run import UNFINISHED

    def act(session: Session, run_id: str) -> Awaitable[Any]:
        return session.cancel(run_id, reason=reason, by=by or getuser())

    act_on_runs(settings, "cancel", run_ids, filters, UNFINISHED, act, yes=yes, as_json=as_json)
