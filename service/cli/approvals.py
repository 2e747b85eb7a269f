"""`turnout approve`: answer an approval.

It needs the running service: only the loaded flow knows which fields the approval asks for.
"""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from .json_input import read_input
from .options import run_async, with_json, with_settings
from .output import print_json, say

if TYPE_CHECKING:
    from turnout.service.settings import Settings


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--fields", metavar="JSON", help="The fields the flow asks for: JSON, @FILE or -.")
@click.option("--reject", "reason", metavar="REASON", help="Reject instead, and why.")
@click.option("--step", metavar="STEP", help="Which approval, if the run waits for several.")
@click.option("--by", metavar="NAME", help="Who answers.  [default: your user name]")
@with_json
@with_settings
def approve(
    settings: Settings, run_id: str, fields: str | None, reason: str | None, step: str | None,
    by: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Answer the approval a run waits for.

    \b
    turnout approve 0198c0de-…
    turnout approve 0198c0de-… --fields '{"budget": 500}'
    turnout approve 0198c0de-… --reject "too expensive"
    """
    from getpass import getuser

    from turnout.service.domain.payload import decode_json
    from turnout.service.operate.documents import encode

    said = {
        "approve": reason is None,
        "fields": None if fields is None else decode_json(read_input(fields)),
        "reason": reason,
        "step": step,
        "by": by or getuser(),
    }
    path = f"/api/runs/{quote(run_id, safe='')}/approve"

    async def act() -> dict[str, Any]:
        from .session import open_service

        async with open_service(settings) as client:
            run: dict[str, Any] = await client.call("POST", path, body=encode(said))
            return run

    run = run_async(act())
    if as_json:
        print_json(run)
    else:
        say(f"run {run['id']} of {run['flow']} is {'approved' if reason is None else 'rejected'}")
