"""`turnout show`: everything the journal knows about one run."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .options import run_async, with_json, with_settings
from .output import print_json
from .times import utc_option

if TYPE_CHECKING:
    from turnout.service.settings import Settings


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--logs", is_flag=True, help="Only the log lines.")
@click.option("--task", metavar="NAME", help="Only steps and log lines of this task.")
@utc_option
@with_json
@with_settings
def show(settings: Settings, run_id: str, logs: bool, task: str | None, as_json: bool) -> None:
    """Show a run: its error and what to do next, then event, attempts, steps and log lines.

    Reads the journal, so it works while the service is down; a running service adds what the run
    waits for. RUN is an id, or a short form of it as lists show it.

    \b
    turnout show 3f9a1c2b
    turnout show 3f9a1c2b --logs --task charge
    turnout show 3f9a1c2b --json | jq .error.traceback
    """
    from .show_run import logs_of, only_task, print_logs, print_run

    document = run_async(post_mortem_of(settings, run_id))
    if task is not None:
        document = only_task(document, task)
    if logs and as_json:
        for line in logs_of(document):
            print_json(line)
    elif as_json:
        print_json(document)
    elif logs:
        print_logs(document, in_full=True)
    else:
        print_run(document)


async def post_mortem_of(settings: Settings, run_id: str) -> dict[str, Any]:
    """Return the document of a run, with what it waits for where a service knows it."""
    from turnout.service.operate.documents import post_mortem

    from .session import open_journal_reader, waits_from_service

    async with open_journal_reader(settings) as reader:
        document = await post_mortem(reader, run_id)
    if document["finished_at"] is None:
        waits = await waits_from_service(settings, [document["id"]])
        if waits is not None:
            document["waiting"] = waits.get(document["id"])
            document["waits_for"] = (document["waiting"] or {}).get("detail")
    return document
