"""`turnout dead`: runs that failed for good."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .bulk import Selection, with_selection
from .options import chosen, with_list
from .runs import list_runs
from .show import show

if TYPE_CHECKING:
    from turnout.service.settings import Settings


class ListByDefault(click.Group):
    """A group that lists by default: `turnout dead --json` is `turnout dead list --json`."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Put `list` in front where no command is named."""
        if not args or (args[0].startswith("-") and args[0] not in context.help_option_names):
            args = ["list", *args]
        return super().parse_args(context, args)


@click.group(cls=ListByDefault)
def dead() -> None:
    """List, replay or drop dead letters: runs that failed for good.

    \b
    turnout dead                             list them (same as: turnout dead list)
    turnout dead show 3f9a1c2b               why it failed
    turnout dead replay 3f9a1c2b             run its flow again, from its event
    turnout dead replay --flow bill --since 1d
    turnout dead drop 3f9a1c2b               remove it from the list
    """


dead.add_command(show)


@dead.command("list")
@with_list
def dead_list(
    settings: Settings, filters: dict[str, str], limit: int | None, as_json: bool
) -> None:
    """List dead letters, newest first.

    \b
    turnout dead list --flow bill --since 1d
    """
    list_runs(settings, chosen(filters, dead=True), limit, as_json=as_json)


@dead.command("replay")
@with_selection
def dead_replay(selection: Selection) -> None:
    """Run the flows of dead letters again, as new runs of the same events.

    \b
    turnout dead replay 3f9a1c2b
    turnout dead replay --flow bill --since 2h --yes
    """
    from turnout.service.operate.verbs import ReplayDead

    ids = selection.ids("replay", None, queues=True)
    known = selection.accepts_not_undone(ids)
    selection.act("replay", ids, lambda run_id: ReplayDead(run_id, known))


@dead.command("drop")
@with_selection
def dead_drop(selection: Selection) -> None:
    """Remove dead letters from the list; their runs stay in the journal as failed.

    \b
    turnout dead drop 3f9a1c2b
    turnout dead drop --flow bill --until 30d
    """
    from turnout.service.operate.verbs import Drop

    selection.act("drop", selection.ids("drop", None), Drop)
