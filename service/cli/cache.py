"""`turnout cache`: the cached results of tasks."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .options import with_json, with_settings
from .output import print_json, say

if TYPE_CHECKING:
    from turnout.service.settings import Settings


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
    from turnout.service.operate.verbs import ClearCache

    from .session import do

    cleared = do(settings, ClearCache(task))
    count = cleared["cleared"]
    if as_json:
        print_json(cleared)
    else:
        say(f"{count} cached result{'s' * (count != 1)} cleared")
