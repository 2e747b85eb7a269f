"""`turnout state`: what flows keep between runs."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .options import limit_option, run_async, with_json, with_settings
from .output import print_json
from .tables import Column, short_ids, table

if TYPE_CHECKING:
    from turnout.service.journal.records import StoredState
    from turnout.service.settings import Settings


@click.command()
@click.argument("flow", required=False)
@limit_option
@with_json
@with_settings
def state(settings: Settings, flow: str | None, limit: int, as_json: bool) -> None:
    """Show what flows keep between runs: `current().state`.

    One line for each flow, and for each key of `ordered_by=`: the value, how often it was written,
    when, and by which run. It works with the service running or down.

    \b
    turnout state poll
    turnout state --json
    """
    from turnout.service.domain.payload import read_json
    from turnout.service.operate.documents import instant

    found = run_async(_states(settings, flow, limit))
    if as_json:
        for each in found:
            document = each._asdict() | {"value": read_json(each.value)}
            print_json(document | {"changed_at": instant(each.changed_at)})
        return
    shown = short_ids([each.run_id for each in found], among=len(found))
    table(
        (
            Column("flow"), Column("key", least=8, optional=True), Column("version"),
            Column("changed", time=True), Column("run"), Column("value", least=20),
        ),
        (
            (each.flow, each.key, each.version, each.changed_at, shown[each.run_id],
             each.value.decode())
            for each in found
        ),
        empty="no flow keeps anything between runs",
    )  # fmt: skip


async def _states(settings: Settings, flow: str | None, limit: int) -> list[StoredState]:
    from .session import open_journal_reader

    async with open_journal_reader(settings) as reader:
        found: Any = await reader.flow_states(flow, limit)
        return list(found)
