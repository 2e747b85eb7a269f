"""The commands that change runs, dead letters, events, flows and triggers.

A command acts on runs named by id, or on every run that matches its filters after asking with the
count. A refusal for one run does not stop the others.
"""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from turnout.service.domain.errors import NotFound, Refused

from .options import ask, chosen, run_async, states_of, with_filters, with_json, with_settings
from .output import complain, print_json, progress, say

if TYPE_CHECKING:
    from turnout.service.domain.run import Run, RunState
    from turnout.service.journal.records import Filter
    from turnout.service.settings import Settings

    from .session import Session

Act = Callable[["Session", str], Awaitable[Any]]

yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
run_ids = click.argument("run_ids", nargs=-1, metavar="[RUN]...")


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
    _on_runs(settings, "retry", run_ids, filters, default, act, yes=yes, as_json=as_json)


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

    _on_runs(settings, "cancel", run_ids, filters, UNFINISHED, act, yes=yes, as_json=as_json)


class _ListByDefault(click.Group):
    """A group that lists by default: `turnout dead --json` is `turnout dead list --json`."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] != "--help"):
            args = ["list", *args]
        return super().parse_args(context, args)


@click.group(cls=_ListByDefault)
def dead() -> None:
    """List, replay or drop dead letters: runs that failed for good.

    \b
    turnout dead                             list them (same as: turnout dead list)
    turnout dead show 0198c0de-…             why it failed
    turnout dead replay 0198c0de-…           run its flow again, from its event
    turnout dead replay --flow bill --since 1d
    turnout dead drop 0198c0de-…             remove it from the list
    """


@dead.command("replay")
@run_ids
@with_filters
@yes_option
@with_json
@with_settings
def dead_replay(
    settings: Settings, run_ids: tuple[str, ...], filters: dict[str, str], yes: bool, as_json: bool
) -> None:
    """Run the flows of dead letters again, as new runs of the same events.

    \b
    turnout dead replay 0198c0de-…
    turnout dead replay --flow bill --since 2h --yes
    """
    known = False

    def act(session: Session, run_id: str) -> Awaitable[Any]:
        return session.replay_dead(run_id, not_undone=known)

    def check(ids: Sequence[str]) -> None:
        nonlocal known
        known = _ask_of_not_undone(run_async(_not_undone(settings, ids)), yes=yes)

    _on_runs(settings, "replay", run_ids, filters, None, act, check, yes=yes, as_json=as_json)


@dead.command("drop")
@run_ids
@with_filters
@yes_option
@with_json
@with_settings
def dead_drop(
    settings: Settings, run_ids: tuple[str, ...], filters: dict[str, str], yes: bool, as_json: bool
) -> None:
    """Remove dead letters from the list; their runs stay in the journal as failed.

    \b
    turnout dead drop 0198c0de-…
    turnout dead drop --flow bill --until 30d
    """

    def act(session: Session, run_id: str) -> Awaitable[Any]:
        return session.drop(run_id)

    _on_runs(settings, "drop", run_ids, filters, None, act, yes=yes, as_json=as_json)


def _on_runs(
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


async def _not_undone(settings: Settings, run_ids: Sequence[str]) -> list[Run]:
    """Return the runs whose effects are not undone."""
    from turnout.service.operate.operator import is_not_undone

    from .session import open_journal_reader

    async with open_journal_reader(settings) as reader:
        runs = [await reader.run(run_id) for run_id in run_ids]
    return [run for run in runs if run is not None and is_not_undone(run)]


def _ask_of_not_undone(runs: Sequence[Run], *, yes: bool) -> bool:
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


@click.command()
@click.argument("event_id", metavar="EVENT")
@click.option("--source", metavar="SOURCE", help="Which source, if several sent this id.")
@yes_option
@with_json
@with_settings
def replay(settings: Settings, event_id: str, source: str | None, yes: bool, as_json: bool) -> None:
    """Run an event's flows again, as new runs.

    Asks first if a run of the event is not undone.

    \b
    turnout replay 0198c0de-…
    turnout replay order-7 --source /shop
    """

    async def runs_of_event() -> list[str]:
        from .session import open_journal_reader

        async with open_journal_reader(settings) as reader:
            found = await reader.event(event_id, source=source)
        return [run for stored in found for run in stored.runs]

    async def act() -> list[str]:
        from .session import open_session

        async with open_session(settings) as session:
            return await session.replay(event_id, source, not_undone=known)

    before = run_async(_not_undone(settings, run_async(runs_of_event())))
    known = _ask_of_not_undone(before, yes=yes)
    runs = run_async(act())
    if as_json:
        print_json({"event": event_id, "runs": runs})
    else:
        say(f"event {event_id} replayed as {', '.join(runs)}")


@click.command()
@click.argument("name", metavar="FLOW|TRIGGER")
@with_json
@with_settings
def pause(settings: Settings, name: str, as_json: bool) -> None:
    """Pause a flow or a trigger.

    It stays paused, across restarts too, until `turnout resume`. A paused flow's events are
    accepted and its runs wait; a paused trigger accepts no events.

    \b
    turnout pause bill
    turnout pause webhook:/orders
    """
    _switch(settings, name, pausing=True, as_json=as_json)


@click.command()
@click.argument("name", metavar="FLOW|TRIGGER")
@with_json
@with_settings
def resume(settings: Settings, name: str, as_json: bool) -> None:
    """Resume a paused flow or trigger.

    \b
    turnout resume bill
    turnout resume webhook:/orders
    """
    _switch(settings, name, pausing=False, as_json=as_json)


@click.group()
def cache() -> None:
    """Manage the cached results of tasks with `cache=`."""


@cache.command("clear")
@click.argument("task", required=False)
@with_json
@with_settings
def cache_clear(settings: Settings, task: str | None, as_json: bool) -> None:
    """Clear the cached results of one task, or of all tasks.

    \b
    turnout cache clear fetch
    turnout cache clear
    """

    async def act() -> int:
        from .session import open_session

        async with open_session(settings) as session:
            return await session.clear_cache(task)

    count = run_async(act())
    if as_json:
        print_json({"cleared": count})
    else:
        say(f"{count} cached result{'s' * (count != 1)} cleared")


def _switch(settings: Settings, name: str, *, pausing: bool, as_json: bool) -> None:
    async def act() -> str:
        from .session import open_session

        async with open_session(settings) as session:
            return await (session.pause(name) if pausing else session.resume(name))

    full = run_async(act())
    if as_json:
        print_json({"name": full, "paused": pausing})
    else:
        kind, _, short = full.partition(":")
        say(f"{kind} {short} {'paused' if pausing else 'resumed'}")
