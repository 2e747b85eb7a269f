"""`turnout state`: list, show and clear what flows keep between runs."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from turnout.service.domain.errors import NotFound, Refused

from .changes import Change, with_change
from .dead_letters import ListByDefault
from .options import limit_option, run_async, with_json, with_settings
from .output import complain, print_facts, print_json, say
from .pauses import by_option, who
from .tables import Column, short_ids, table
from .times import stamp, utc_option

if TYPE_CHECKING:
    from turnout.service.journal.records import StoredState
    from turnout.service.settings import Settings

key_option = click.option(
    "--key", metavar="KEY", help="Under this key of ordered_by= only; '' for the flow's own."
)


class _State(ListByDefault):
    """Lists by default, also when the first word is a flow: `turnout state poll`."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Put `list` in front where no command is named."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["list", *args]
        return super().parse_args(context, args)


@click.group(cls=_State)
def state() -> None:
    """List, show or clear what flows keep between runs: `current().state`.

    A value of a flow without ordered_by= stays until it is cleared. One under an ordering key goes
    when no run has had that key for `keep_state` (90d) and those that had are deleted.

    \b
    turnout state                            list them (same as: turnout state list)
    turnout state poll                       what one flow keeps
    turnout state show poll                  the whole value
    turnout state clear poll --dry-run       what would be cleared
    turnout state clear orders --key acme
    """


@state.command("list")
@click.argument("flow", required=False)
@key_option
@limit_option
@utc_option
@with_json
@with_settings
def list_state(
    settings: Settings, flow: str | None, key: str | None, limit: int, as_json: bool
) -> None:
    """List what flows keep: one line for each flow, and for each key of ordered_by=.

    The value, how often it was written, when, and by which run. It works with the service running
    or down.

    \b
    turnout state list poll
    turnout state --json
    """
    found = run_async(_states(settings, flow, key, limit))
    if as_json:
        _print_json(found)
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
        empty="no flow keeps anything between runs" if flow is None else _nothing(flow, key),
    )  # fmt: skip
    if len(found) == limit:
        complain(f"these are the first {limit}; --limit shows more")


@state.command("show")
@click.argument("flow")
@key_option
@utc_option
@with_json
@with_settings
def show_state(settings: Settings, flow: str, key: str | None, as_json: bool) -> None:
    """Show the whole value of a flow, which may need its key, and who wrote it.

    \b
    turnout state show poll
    turnout state show orders --key acme --json
    """
    found = run_async(_states(settings, flow, key, 2))
    if not found:
        raise NotFound(f"{_nothing(flow, key)}; `turnout state` lists what is kept")
    if len(found) > 1:
        raise Refused(
            f"flow {flow} keeps a value for each of several keys: name one with --key; "
            f"`turnout state list {flow}` lists them"
        )
    if as_json:
        _print_json(found)
        return
    (state,) = found
    print_facts(
        ("flow", state.flow), ("key", state.key), ("version", state.version),
        ("changed", stamp(state.changed_at)), ("run", state.run_id),
    )  # fmt: skip
    say(_readable(state.value))


@state.command("clear")
@click.argument("flow")
@key_option
@by_option
@with_change(asks=True)
def clear_state(change: Change, flow: str, key: str | None, by: str | None) -> None:
    """Clear what a flow keeps, under one key or all; asks first, with the count.

    Its next run finds nothing: `get` returns the default. A run that has read the old value and
    wants to keep another one starts over.

    \b
    turnout state clear poll
    turnout state clear orders --key acme
    turnout state clear orders --dry-run     how many values there are
    """
    from turnout.service.operate.verbs import ClearState

    def tell(done: dict[str, Any]) -> None:
        count = done["cleared"]
        say(f"{count:,} value{'s' * (count != 1)} of flow {flow} cleared")

    change.do(ClearState(flow, key, who(by)), tell=tell)


async def _states(
    settings: Settings, flow: str | None, key: str | None, limit: int
) -> list[StoredState]:
    from .session import open_journal_reader

    async with open_journal_reader(settings) as reader:
        return await reader.flow_states(flow, limit, key=key)


def _print_json(found: list[StoredState]) -> None:
    from turnout.service.operate.flow_state import state_of

    for each in found:
        print_json(state_of(each))


def _nothing(flow: str, key: str | None) -> str:
    return f"flow {flow!r} keeps nothing between runs{'' if key is None else f' under {key!r}'}"


def _readable(value: bytes) -> str:
    """Return the JSON of a value on as many lines as it takes."""
    import json

    return json.dumps(json.loads(value), indent=2, ensure_ascii=False)
