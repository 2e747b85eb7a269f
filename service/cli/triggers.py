"""`turnout triggers`, `fire` and `trigger seek`.

A seek first shows what it skips or repeats. A running service does it and stops only that trigger
meanwhile. Without one the command writes to the journal under its lock, and `--flows` names the
files that declare the trigger.
"""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import tables
from .changes import Change, with_change
from .options import force_option, read_json, with_json, with_settings
from .output import print_json, say, show_receipt
from .pauses import pause_words
from .tables import Column, table
from .times import brief, utc_option

if TYPE_CHECKING:
    from turnout.service.project import Project
    from turnout.service.settings import Settings


@click.command()
@utc_option
@with_json
@with_settings
def triggers(settings: Settings, as_json: bool) -> None:
    """List the triggers of the running service: whether they are up, and where they are called.

    `refused` counts the input that was not accepted since the service was started: a wrong
    signature, a body that cannot be read or is too large, data that no flow takes.

    \b
    turnout triggers
    turnout triggers --json | jq 'select(.refused > 0) | .rejected'
    """
    from .session import list_from_service

    rows = list_from_service(settings, "/api/triggers")
    if as_json:
        for row in rows:
            print_json(row)
    else:
        print_triggers(rows)


def print_triggers(rows: Sequence[dict[str, Any]]) -> None:
    """Print triggers as a table.

    On a terminal, what all addresses begin with stands below it, once, and so do the problems: a
    cell has no place for them.
    """
    is_terminal = tables.terminal_width() is not None
    addresses = [row["address"] for row in rows if row["address"]]
    base = addresses[0].partition("/hooks/")[0] if addresses else ""
    columns = [
        Column("trigger", 24), Column("state"), Column("called at, next"),
        Column("last", time=True), Column("refused"), Column("flows", 12, optional=True),
    ]  # fmt: skip
    cells = [
        [
            row["name"], _state(row), _where(row, base), row["last_event_at"],
            row["refused"] or "", ", ".join(row["flows"]), _problem(row),
        ]
        for row in rows
    ]  # fmt: skip
    if is_terminal:
        table(columns, [line[:-1] for line in cells], empty="no triggers")
    else:
        table([*columns, Column("problem", 8)], cells, empty="no triggers")
        return
    if base:
        say(f"webhooks are called at {base}/hooks/…")
    for row in rows:
        if problem := _problem(row):
            say(f"{row['name']} is {_state(row)}{': ' if row['pause'] is None else ' '}{problem}")


def _state(row: dict[str, Any]) -> str:
    return "up" if row["up"] else "paused" if row["pause"] else "down"


def _problem(row: dict[str, Any]) -> str:
    """Return until when a trigger is paused and why, or why it is down."""
    return row["problem"] or "" if row["pause"] is None else pause_words(row["pause"]).strip()


def _where(row: dict[str, Any], base: str) -> str:
    """Return where a trigger is called, or when it fires next."""
    if row["address"] is None:
        return brief(row["next_at"])
    return str(row["address"].removeprefix(base if tables.terminal_width() is not None else ""))


@click.command()
@click.argument("trigger", metavar="TRIGGER")
@click.option("--input", "input_text", metavar="JSON", help="The event's data: JSON, @FILE or -.")
@force_option
@with_change()
def fire(change: Change, trigger: str, input_text: str | None, force: bool) -> None:
    """Start the flows of a trigger now.

    The event carries the data of --input, or none. If no flow accepts it, nothing is stored.
    Needs a running service; `turnout triggers` lists the names.

    \b
    turnout fire 'cron:0 9 * * *'
    turnout fire webhook:/orders --input '{"id": "7", "amount": 3}'
    """
    from turnout.service.operate.verbs import Fire

    data = {} if input_text is None else {"data": read_json(input_text)}
    change.do(Fire(trigger, **data, force=force), tell=show_receipt)


@click.group()
def trigger() -> None:
    """Move the position of a trigger.

    \b
    turnout trigger seek kafka:orders/billing --to end --dry-run
    turnout trigger seek nightly --to now
    """


@trigger.command()
@click.argument("name", metavar="TRIGGER")
@click.option(
    "--to",
    required=True,
    metavar="WHERE",
    help="now, start, end, an offset, or an RFC 3339 instant.",
)
@click.option("--partition", metavar="PARTITION", help="One partition (3, orders/3).  [all]")
@click.option("--rerun", is_flag=True, help="Allow moving back: accepted records run again.")
@click.option(
    "--flows", multiple=True, type=click.Path(path_type=Path), metavar="PATH",
    help="The flow files, when the service is not running.",
)  # fmt: skip
@with_change(asks=True)
def seek(
    change: Change, name: str, to: str, partition: str | None, rerun: bool, flows: tuple[Path, ...]
) -> None:
    """Move the position from which a trigger reads.

    Moving forward skips records for good. Moving back needs --rerun and turns accepted records
    into new events. Other members of a Kafka group keep their own positions: seek while they are
    stopped. A timer takes now, or an earlier instant: ticks up to it are skipped.

    \b
    turnout trigger seek kafka:orders/billing --to end --dry-run
    turnout trigger seek kafka:orders/billing --to 2026-01-31T09:00:00Z --rerun
    turnout trigger seek kafka:orders/billing --to 4711 --partition 3 --rerun --yes
    turnout trigger seek nightly --to now
    """
    from turnout.service.domain.trigger import Seek
    from turnout.service.operate.verbs import SeekTrigger
    from turnout.service.project.loader import load

    def project() -> Project:
        if not flows:
            raise click.UsageError(
                "no service is running: name the files that declare the trigger with --flows"
            )
        return load(flows)

    def tell(plan: dict[str, Any]) -> None:
        for sentence in plan["done"]:
            say(sentence)

    target = Seek(to=to, partition=partition, rerun=rerun)
    change.do(SeekTrigger(name, target), tell=tell, project=project)
