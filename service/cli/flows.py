"""`turnout flows`: the flows of the running service."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .options import with_json, with_settings
from .output import print_json
from .pauses import state_of
from .tables import Column, table
from .times import utc_option

if TYPE_CHECKING:
    from turnout.service.settings import Settings


@click.command()
@click.option("--owner", metavar="NAME", help="Flows of this owner.")
@click.option("--tag", metavar="TAG", help="Flows with this tag.")
@utc_option
@with_json
@with_settings
def flows(settings: Settings, owner: str | None, tag: str | None, as_json: bool) -> None:
    """List the flows of the running service, and what is paused.

    `turnout pause --list` says who has paused it and why.
    """
    from .session import list_from_service

    asked = {"owner": owner, "tag": tag}
    rows = list_from_service(settings, "/api/flows", **asked)
    if as_json:
        for row in rows:
            print_json(row)
        return
    table(
        (
            Column("flow", 8), Column("state"), Column("triggers", 16),
            Column("retries", optional=True), Column("limit", optional=True),
            Column("owner", 12, optional=True), Column("where", 16),
        ),
        (
            (
                row["name"], state_of(row, "shadow" if row["shadow"] else "up"),
                ", ".join(row["triggers"]), row["retries"] or "", row["concurrency"] or "",
                row["owner"] or "", f"{row['file']}:{row['line']}",
            )
            for row in rows
        ),
        empty="no flows",
    )  # fmt: skip
