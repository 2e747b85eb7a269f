"""`turnout pause` and `turnout resume`."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .options import run_async, with_json, with_settings
from .output import print_json, say

if TYPE_CHECKING:
    from turnout.service.settings import Settings


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
