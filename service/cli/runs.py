"""`turnout runs`, `retry`, `cancel`, `approve`. Listing reads the journal, service or not."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from . import tables
from .bulk import Selection, with_selection
from .changes import Change, with_change
from .options import (
    chosen,
    force_option,
    read_json,
    run_async,
    with_list,
)
from .output import complain, lasted, print_json, say, short
from .tables import Column, short_ids, table
from .times import with_brief_times, with_local_times
from .words import undo_words

if TYPE_CHECKING:
    from turnout.service.domain.run import Run
    from turnout.service.journal.contract import Reads
    from turnout.service.journal.records import Filter
    from turnout.service.settings import Settings


@click.command()
@with_list
def runs(settings: Settings, filters: dict[str, str], limit: int | None, as_json: bool) -> None:
    """List runs, newest first.

    \b
    turnout runs
    turnout runs --flow bill --state failed --since 1d
    turnout runs --all --json | jq -r .id
    """
    list_runs(settings, chosen(filters), limit, as_json=as_json)


def list_runs(settings: Settings, which: Filter, limit: int | None, *, as_json: bool) -> None:
    """Print matching runs or dead letters, newest first."""
    if as_json:
        run_async(_print_json(settings, which, limit), prints=True)
        return
    found = run_async(_read(settings, which, limit))
    ids = short_ids(
        [run.id for run, _ in found], among=max((run.seq for run, _ in found), default=0)
    )
    columns = [each for each in _COLUMNS if not (which.dead and each.name == "state")]
    table(
        columns,
        ((ids[run.id], *_run_row(run, waits_for, which)) for run, waits_for in found),
        empty=f"no {'dead letter' if which.dead else 'run'}s match",
    )
    if len(found) == limit:
        complain(f"these are the newest {limit}; --limit or --all shows more")


async def _print_json(settings: Settings, which: Filter, limit: int | None) -> None:
    """Print runs as they are read: there may be millions."""
    async for run, waits_for in _with_waits(settings, which, limit):
        print_json(run.as_dict() | {"waits_for": waits_for})


async def _read(
    settings: Settings, which: Filter, limit: int | None
) -> list[tuple[Run, str | None]]:
    return [found async for found in _with_waits(settings, which, limit)]


async def _with_waits(
    settings: Settings, which: Filter, limit: int | None
) -> AsyncIterator[tuple[Run, str | None]]:
    """Yield runs, each with what it waits for."""
    from turnout.service.operate.filters import pages_of_runs

    from .session import open_journal_reader

    async with open_journal_reader(settings) as reader:
        async for page in pages_of_runs(reader, which, at_most=limit):
            waits = await _waits_of(settings, reader, page)
            for run in page:
                yield run, waits.get(run.id)


_COLUMNS = (
    Column("run"), Column("flow", 12), Column("state"), Column("attempts", optional=True),
    Column("queued", time=True), Column("took"), Column("trigger", 14, optional=True),
    Column("why", 8),
)  # fmt: skip


async def _waits_of(settings: Settings, reader: Reads, runs: Sequence[Run]) -> Mapping[str, str]:
    """Return in words what each of these runs waits for, by its id."""
    from turnout.service.domain.run import UNFINISHED
    from turnout.service.operate.waits import waits_of

    from .session import waits_from_service

    unfinished = [run for run in runs if run.state in UNFINISHED]
    told = await waits_from_service(settings, [run.id for run in unfinished])
    if told is not None:
        return {run_id: waiting["detail"] for run_id, waiting in told.items()}
    waits = await waits_of(reader, unfinished, None)
    return {run_id: waiting.detail for run_id, waiting in waits.items()}


def _run_row(run: Run, waits_for: str | None, which: Filter) -> tuple[object, ...]:
    """Return the cells of a run behind its id; a dead letter has no state: it has failed."""
    words = with_local_times if tables.terminal_width() is None else with_brief_times
    why = run.reason or words(waits_for or "")
    if run.error is not None:
        error = f"{run.error.type}: {run.error.message}"
        why = f"{error}; {why}" if why and run.finished_at is None else error
    if run.undo in ("running", "failed"):
        why = f"undo: {undo_words(run.undo, run.undo_failed)}; {why}".removesuffix("; ")
    state = () if which.dead else (run.state,)
    return (
        run.flow, *state, run.attempts or "", run.queued_at,
        lasted(run.started_at, run.finished_at), run.trigger, short(why, 400),
    )  # fmt: skip


@click.command()
@click.option("--from", "from_step", metavar="STEP", help="Run again from this step on (its key).")
@force_option
@with_selection
def retry(selection: Selection, from_step: str | None, force: bool) -> None:
    """Queue finished runs again; a run that waits for its next try is tried now.

    Recorded steps are not run again. If the undo of a run failed, only the rest of the undo runs.
    The mode of the flow (mode="skip") counts as for a new run, unless it is forced. A run with a
    key of ordered_by= goes behind the others of that key, unless it blocks them (on_dead="block").

    \b
    turnout retry 3f9a1c2b                   one run
    turnout retry 3f9a1c2b --from charge    again from a step (keys: turnout show)
    turnout retry --flow bill --state failed every failed run of a flow
    turnout retry --since 2h --yes           failed runs of the last two hours
    """
    from turnout.service.domain.run import RunState
    from turnout.service.operate.verbs import Retry

    ids = selection.ids("retry", frozenset({RunState.FAILED}), queues=True)
    selection.act("retry", ids, lambda run_id: Retry(run_id, from_step, force))


@click.command()
@click.option("--reason", default="", metavar="WHY", help="Why; stored with the run.")
@click.option("--by", metavar="NAME", help="Who cancels.  [default: your user name]")
@with_selection
def cancel(selection: Selection, reason: str, by: str | None) -> None:
    """Cancel unfinished runs and undo what they did.

    The flow stops, its registered compensations run, then the run ends as cancelled. A run that
    is already being undone cannot be cancelled.

    \b
    turnout cancel 3f9a1c2b --reason "ordered twice"
    turnout cancel --flow bill               every unfinished run of a flow
    turnout cancel --flow bill --state queued
    """
    from getpass import getuser

    from turnout.service.domain.run import UNFINISHED
    from turnout.service.operate.verbs import Cancel

    who = by or getuser()
    ids = selection.ids("cancel", UNFINISHED)
    selection.act("cancel", ids, lambda run_id: Cancel(run_id, reason, who))


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--fields", metavar="JSON", help="The fields the flow asks for: JSON, @FILE or -.")
@click.option("--reject", "reason", metavar="REASON", help="Reject instead, and why.")
@click.option("--step", metavar="STEP", help="Which approval, if the run waits for several.")
@click.option("--by", metavar="NAME", help="Who answers.  [default: your user name]")
@with_change()
def approve(
    change: Change, run_id: str, fields: str | None, reason: str | None, step: str | None,
    by: str | None,
) -> None:  # fmt: skip
    """Answer the approval a run waits for.

    \b
    turnout approve 3f9a1c2b
    turnout approve 3f9a1c2b --fields '{"budget": 500}'
    turnout approve 3f9a1c2b --reject "too expensive"
    """
    from getpass import getuser

    from turnout.service.domain.payload import decode_json
    from turnout.service.operate.verbs import Answer

    verb = Answer(
        run_id=run_id,
        approved=reason is None,
        fields=None if fields is None else decode_json(read_json(fields, option="--fields")),
        reason=reason or "",
        by=by or getuser(),
        step=step,
    )

    def tell(run: dict[str, Any]) -> None:
        say(f"run {run['id']} of {run['flow']} is {'approved' if reason is None else 'rejected'}")

    change.do(verb, tell=tell)
