"""`turnout flows`: the flows of the running service; `pause` and `resume`, also of triggers."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .options import with_json, with_settings
from .output import print_json, say, table

if TYPE_CHECKING:
    from turnout.service.operate.verbs import Pause, Resume
    from turnout.service.settings import Settings


@click.command()
@with_json
@with_settings
def flows(settings: Settings, as_json: bool) -> None:
    """List the flows of the running service."""
    from .session import list_from_service

    rows = list_from_service(settings, "/api/flows")
    if as_json:
        for row in rows:
            print_json(row)
        return
    table(
        ("flow", "state", "triggers", "retries", "limit", "where"),
        (
            (
                row["name"], "paused" if row["paused_at"] else "up",
                ", ".join(row["triggers"]), row["retries"], row["concurrency"] or "",
                f"{row['file']}:{row['line']}",
            )
            for row in rows
        ),
        empty="no flows",
    )  # fmt: skip


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
    from turnout.service.operate.verbs import Pause

    _do(settings, Pause(name), paused=True, as_json=as_json)


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
    from turnout.service.operate.verbs import Resume

    _do(settings, Resume(name), paused=False, as_json=as_json)


def _do(settings: Settings, verb: Pause | Resume, *, paused: bool, as_json: bool) -> None:
    from .session import do

    full = do(settings, verb)["name"]
    if as_json:
        print_json({"name": full, "paused": paused})
    else:
        kind, _, short = full.partition(":")
        say(f"{kind} {short} {'paused' if paused else 'resumed'}")
