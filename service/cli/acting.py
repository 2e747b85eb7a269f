"""The commands that change something: runs, dead letters, events, flows, triggers.

One at a time by name, or many by filter, asked for with their count first. What the journal
refuses for one run never keeps the others from their turn.
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

    from .session import Hands

Act = Callable[["Hands", str], Awaitable[Any]]

yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
run_ids = click.argument("run_ids", nargs=-1, metavar="[RUN]...")


@click.command()
@run_ids
@click.option("--from", "from_step", metavar="STEP", help="Run again from this step key on.")
@with_filters
@yes_option
@with_json
@with_settings
def retry(
    settings: Settings, run_ids: tuple[str, ...], from_step: str | None,
    filters: dict[str, str], yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Queue finished runs again, or try now what waits for its next try.

    Steps already recorded are not run again. A run whose undo failed goes on with what is not
    undone yet, and with nothing else.

    \b
    turnout retry 0198c0de-…                 one run
    turnout retry 0198c0de-… --from charge   again from a step (keys: turnout show)
    turnout retry --flow bill --state failed every failed run of a flow
    turnout retry --since 2h --yes           every failed run of two hours, unasked
    """
    from turnout.service.domain.run import RunState

    def act(hands: Hands, run_id: str) -> Awaitable[Any]:
        return hands.retry(run_id, from_step)

    default = frozenset({RunState.FAILED})
    _on_runs(settings, "retry", run_ids, filters, default, act, yes=yes, as_json=as_json)


@click.command()
@run_ids
@click.option("--reason", default="", metavar="WHY", help="Why; it is kept with the run.")
@click.option("--by", metavar="NAME", help="Who says so; your user name unless given.")
@with_filters
@yes_option
@with_json
@with_settings
def cancel(
    settings: Settings, run_ids: tuple[str, ...], reason: str, by: str | None,
    filters: dict[str, str], yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """End unfinished runs as cancelled, once what they did is undone.

    A run goes no further from then on, and what it registered to undo it is carried out. One that
    is being undone already cannot be cancelled.

    \b
    turnout cancel 0198c0de-… --reason "ordered twice"
    turnout cancel --flow bill               every unfinished run of a flow
    turnout cancel --flow bill --state queued
    """
    from getpass import getuser

    from turnout.service.domain.run import UNFINISHED

    def act(hands: Hands, run_id: str) -> Awaitable[Any]:
        return hands.cancel(run_id, reason=reason, by=by or getuser())

    _on_runs(settings, "cancel", run_ids, filters, UNFINISHED, act, yes=yes, as_json=as_json)


class _ListByDefault(click.Group):
    """A group whose bare name lists: `turnout dead --json` is `turnout dead list --json`."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] != "--help"):
            args = ["list", *args]
        return super().parse_args(context, args)


@click.group(cls=_ListByDefault)
def dead() -> None:
    """Deal with runs that failed for good.

    \b
    turnout dead                             list them (same as: turnout dead list)
    turnout dead show 0198c0de-…             why it died
    turnout dead replay 0198c0de-…           its flow again, from the event
    turnout dead replay --flow bill --since 1d
    turnout dead drop 0198c0de-…             off the list; the run stays, failed
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
    """Start the flows of dead letters again from their events, as new runs.

    \b
    turnout dead replay 0198c0de-…
    turnout dead replay --flow bill --since 2h --yes
    """
    known = False

    def act(hands: Hands, run_id: str) -> Awaitable[Any]:
        return hands.replay_dead(run_id, not_undone=known)

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
    """Take dead letters off the list; their runs stay in the journal as failed.

    \b
    turnout dead drop 0198c0de-…
    turnout dead drop --flow bill --until 30d
    """

    def act(hands: Hands, run_id: str) -> Awaitable[Any]:
        return hands.drop(run_id)

    _on_runs(settings, "drop", run_ids, filters, None, act, yes=yes, as_json=as_json)


def _on_runs(
    settings: Settings, verb: str, run_ids: tuple[str, ...], filters: dict[str, str],
    states: frozenset[RunState] | None, act: Act,
    check: Callable[[Sequence[str]], None] | None = None, *, yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Act on the named runs, or on those that fit; `states` None means dead letters.

    `check` sees them first, and may ask for more.
    """
    if bool(run_ids) == bool(filters):
        raise click.UsageError(f"name runs to {verb}, or say which by filters such as --flow")
    if not filters:
        ids = run_async(_full_ids(settings, run_ids))
    else:
        which = chosen(filters, dead=True if states is None else None)
        ids = run_async(_matching(settings, which, states))
        if not ids:
            say("no run fits")
            return
        noun = "run" if states is not None else "dead letter"
        ask(f"{verb} {len(ids)} {noun}{'s' * (len(ids) != 1)}?", yes=yes)
    if check is not None:
        check(ids)
    if run_async(_act_on(settings, verb, ids, act, as_json=as_json)):
        raise SystemExit(1)


async def _full_ids(settings: Settings, run_ids: Sequence[str]) -> list[str]:
    """Return the ids of runs that may be named by their first characters; others as they are."""
    from .session import open_books

    async with open_books(settings) as reader:
        found = [await reader.run(run_id) for run_id in run_ids]
    return [run_id if run is None else run.id for run_id, run in zip(run_ids, found, strict=True)]


async def _matching(
    settings: Settings, which: Filter, states: frozenset[RunState] | None
) -> list[str]:
    from dataclasses import replace

    from turnout.service.operate.filters import all_runs

    from .session import open_books

    wanted = [None] if states is None else states_of(which.state, states)
    async with open_books(settings) as reader:
        return [
            run.id
            for state in wanted
            async for run in all_runs(reader, replace(which, state=state or which.state))
        ]


async def _not_undone(settings: Settings, run_ids: Sequence[str]) -> list[Run]:
    """Return those of the runs that have effects which are not undone."""
    from turnout.service.operate.operator import is_not_undone

    from .session import open_books

    async with open_books(settings) as reader:
        runs = [await reader.run(run_id) for run_id in run_ids]
    return [run for run in runs if run is not None and is_not_undone(run)]


def _ask_of_not_undone(runs: Sequence[Run], *, yes: bool) -> bool:
    """Ask before a replay beside effects that are not undone; returns whether there are any."""
    if runs:
        names = ", ".join(run.id for run in runs)
        ask(
            f"What these runs did is not undone, and a replay does it once more, with other keys: "
            f"{names}. `turnout retry` finishes their undo. Replay all the same?",
            yes=yes,
        )
    return bool(runs)


async def _act_on(settings: Settings, verb: str, ids: list[str], act: Act, *, as_json: bool) -> int:
    from .session import open_hands

    refused = 0
    async with open_hands(settings) as hands:
        with progress(ids, verb) as turns:
            for run_id in turns:
                try:
                    done = await act(hands, run_id)
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
        say(f"run {run_id} starts again as {', '.join(done)}")


def _state_of(run: dict[str, Any]) -> str:
    return f"{run['state']}, and being undone" if run["undo"] == "running" else str(run["state"])


@click.command()
@click.argument("event_id", metavar="EVENT")
@click.option("--source", metavar="SOURCE", help="When several sources sent this id: which.")
@yes_option
@with_json
@with_settings
def replay(settings: Settings, event_id: str, source: str | None, yes: bool, as_json: bool) -> None:
    """Start an event's flows again, as new runs.

    Asks first when a run of the event did what is not undone.

    \b
    turnout replay 0198c0de-…
    turnout replay order-7 --source /shop
    """

    async def runs_of_event() -> list[str]:
        from .session import open_books

        async with open_books(settings) as reader:
            found = await reader.event(event_id, source=source)
        return [run for stored in found for run in stored.runs]

    async def act() -> list[str]:
        from .session import open_hands

        async with open_hands(settings) as hands:
            return await hands.replay(event_id, source, not_undone=known)

    before = run_async(_not_undone(settings, run_async(runs_of_event())))
    known = _ask_of_not_undone(before, yes=yes)
    runs = run_async(act())
    if as_json:
        print_json({"event": event_id, "runs": runs})
    else:
        say(f"event {event_id} starts again as {', '.join(runs)}")


@click.command()
@click.argument("name", metavar="FLOW|TRIGGER")
@with_json
@with_settings
def pause(settings: Settings, name: str, as_json: bool) -> None:
    """Pause a flow or a trigger.

    It stays paused, also over a restart, until `turnout resume`. A paused flow's events are
    accepted and its runs wait; a paused trigger accepts nothing.

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
    """Undo a pause.

    \b
    turnout resume bill
    turnout resume webhook:/orders
    """
    _switch(settings, name, pausing=False, as_json=as_json)


@click.group()
def cache() -> None:
    """Forget results that tasks with `cache=` keep."""


@cache.command("clear")
@click.argument("task", required=False)
@with_json
@with_settings
def cache_clear(settings: Settings, task: str | None, as_json: bool) -> None:
    """Forget the kept results of a task, or of all.

    \b
    turnout cache clear fetch
    turnout cache clear
    """

    async def act() -> int:
        from .session import open_hands

        async with open_hands(settings) as hands:
            return await hands.clear_cache(task)

    count = run_async(act())
    if as_json:
        print_json({"cleared": count})
    else:
        say(f"{count} kept results forgotten")


def _switch(settings: Settings, name: str, *, pausing: bool, as_json: bool) -> None:
    async def act() -> str:
        from .session import open_hands

        async with open_hands(settings) as hands:
            return await (hands.pause(name) if pausing else hands.resume(name))

    full = run_async(act())
    if as_json:
        print_json({"name": full, "paused": pausing})
    else:
        say(f"{full} {'is paused' if pausing else 'goes on'}")
