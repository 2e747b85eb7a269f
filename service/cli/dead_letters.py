"""`turnout dead`: runs that failed for good."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any

import click

from .bulk import act_on_runs, ask_of_not_undone, not_undone, run_ids
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
from .runs import list_runs
from .show import show

if TYPE_CHECKING:
    from turnout.service.settings import Settings

    from .session import Session


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


dead.add_command(show)


@dead.command("list")
@with_filters
@limit_option
@all_option
@with_json
@with_settings
def dead_list(
    settings: Settings, filters: dict[str, str], limit: int, everything: bool, as_json: bool
) -> None:
    """List dead letters, newest first.

    \b
    turnout dead list --flow bill --since 1d
    """
    which = chosen(filters, dead=True)
    run_async(list_runs(settings, which, None if everything else limit, as_json=as_json))


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
        known = ask_of_not_undone(run_async(not_undone(settings, ids)), yes=yes)

    act_on_runs(settings, "replay", run_ids, filters, None, act, check, yes=yes, as_json=as_json)


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

    act_on_runs(settings, "drop", run_ids, filters, None, act, yes=yes, as_json=as_json)
