"""`turnout flows`: the flows of the running service."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .options import with_json, with_settings
from .output import print_json, table
from .pauses import state_of

if TYPE_CHECKING:
    from turnout.service.settings import Settings


@click.command()
@with_json
@with_settings
def flows(settings: Settings, as_json: bool) -> None:
    """List the flows of the running service, and what is paused.

    `turnout pause --list` says who has paused it and why.
    """
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
                row["name"], state_of(row, "up"),
                ", ".join(row["triggers"]), row["retries"], row["concurrency"] or "",
                f"{row['file']}:{row['line']}",
            )
            for row in rows
        ),
        empty="no flows",
    )  # fmt: skip
