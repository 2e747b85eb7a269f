"""`turnout flows`: the flows that the running service has loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .options import run_async, with_json, with_settings
from .output import print_json, table
from .running_service import list_from_service

if TYPE_CHECKING:
    from turnout.service.settings import Settings


@click.command()
@with_json
@with_settings
def flows(settings: Settings, as_json: bool) -> None:
    """List the flows of the running service."""
    rows = run_async(list_from_service(settings, "/api/flows"))
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
