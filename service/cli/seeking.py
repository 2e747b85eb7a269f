"""`turnout trigger seek`: move where a trigger reads on, after saying what that comes to.

Through the live service, which stops only that trigger meanwhile; or, with the service down, on
the journal under its lock, where `--flows` tells what the trigger reads.
"""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from .options import ask, run_async, with_json, with_settings
from .output import complain, print_json, say

if TYPE_CHECKING:
    from turnout.service.settings import Settings


@click.group()
def trigger() -> None:
    """Move where a trigger reads on.

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
@click.option("--rerun", is_flag=True, help="Allow going back: accepted records run again.")
@click.option("--dry-run", is_flag=True, help="Say what would happen, and change nothing.")
@click.option(
    "--flows", multiple=True, type=click.Path(path_type=Path), metavar="PATH",
    help="The flow files, when the service is not running.",
)  # fmt: skip
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_json
@with_settings
def seek(
    settings: Settings, name: str, to: str, partition: str | None, rerun: bool, dry_run: bool,
    flows: tuple[Path, ...], yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Read on from somewhere else.

    Going on skips records for ever. Going back needs --rerun, and makes new events of records that
    were accepted before. Other members of a Kafka group keep their own places: seek while they are
    stopped. A timer takes now, or an instant before it: ticks up to there never come.

    \b
    turnout trigger seek kafka:orders/billing --to end --dry-run
    turnout trigger seek kafka:orders/billing --to 2026-01-31T09:00:00Z --rerun
    turnout trigger seek kafka:orders/billing --to 4711 --partition 3 --rerun --yes
    turnout trigger seek nightly --to now
    """
    wish = {"to": to, "partition": partition, "rerun": rerun}
    plan = run_async(_seek(settings, name, wish, flows, dry_run=True))
    if dry_run:
        _show(plan, as_json=as_json)
        return
    if not yes:
        for sentence in plan["done"]:
            complain(sentence)
        ask(f"move trigger {name}?", yes=False)
    _show(run_async(_seek(settings, name, wish, flows, dry_run=False)), as_json=as_json)


def _show(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(document)
        return
    for sentence in document["done"]:
        say(f"{'would: ' if document['dry_run'] else ''}{sentence}")


async def _seek(
    settings: Settings, name: str, wish: dict[str, Any], flows: tuple[Path, ...], *, dry_run: bool
) -> dict[str, Any]:
    from turnout.service.operate.documents import encode

    from .session import open_service, service_url

    if await service_url(settings) is None:
        return await _seek_at_rest(settings, name, wish, flows, dry_run=dry_run)
    path = f"/api/triggers/{quote(name, safe='')}/seek"
    async with open_service(settings) as client:
        answer: dict[str, Any] = await client.call(
            "POST", path, body=encode({**wish, "dry_run": dry_run})
        )
    return answer


async def _seek_at_rest(
    settings: Settings, name: str, wish: dict[str, Any], flows: tuple[Path, ...], *, dry_run: bool
) -> dict[str, Any]:
    from turnout.service.domain.trigger import Seek
    from turnout.service.operate.documents import seek_of
    from turnout.service.project.loader import load

    from .session import open_operator

    if not flows:
        raise click.UsageError(
            "no service is running: say with --flows in which files the trigger is declared"
        )
    project = load(flows)
    async with open_operator(settings, lambda: project) as operator:
        plan = await operator.seek(name, Seek(**wish), dry_run=dry_run)
    return seek_of(name, plan, dry_run=dry_run)
