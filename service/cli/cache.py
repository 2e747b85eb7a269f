"""`turnout cache`: the cached results of tasks."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from typing import Any

import click

from .changes import Change, with_change
from .output import say


@click.group()
def cache() -> None:
    """Manage the cached results of tasks with `cache=`."""


@cache.command("clear")
@click.argument("task", required=False)
@with_change(asks=True)
def cache_clear(change: Change, task: str | None) -> None:
    """Clear the cached results of one task, or of all tasks; asks first.

    \b
    turnout cache clear fetch
    turnout cache clear --dry-run            how many there are
    turnout cache clear --yes
    """
    from turnout.service.operate.verbs import ClearCache

    change.do(ClearCache(task), tell=_tell)


def _tell(done: dict[str, Any]) -> None:
    count = done["cleared"]
    say(f"{count} cached result{'s' * (count != 1)} cleared")
