"""`turnout pending`: open windows, and the events they hold."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .changes import Change, with_change
from .dead_letters import ListByDefault
from .options import limit_option, run_async, with_json, with_settings
from .output import complain, heading, print_facts, print_json, say
from .pauses import by_option, who
from .tables import Column, short_ids, table
from .times import stamp, utc_option

if TYPE_CHECKING:
    from turnout.service.settings import Settings


@click.group(cls=ListByDefault)
def pending() -> None:
    """List, show, fire or drop open windows: events that wait to start a run together.

    Windows are what flows with debounce(…), batch(…), count(…), sequence(…), all_of(…) and
    absent(…) open. They close by themselves; stopping the service or pausing the flow closes none.

    \b
    turnout pending                          list them (same as: turnout pending list)
    turnout pending show 3f9a1c2b            its events, and what is missing
    turnout pending fire 3f9a1c2b            start its run now
    turnout pending drop 3f9a1c2b            start nothing; its events get the decision "dropped"
    """


@pending.command("list")
@click.option("--flow", metavar="FLOW", help="Windows of this flow.")
@limit_option
@utc_option
@with_json
@with_settings
def list_pending(settings: Settings, flow: str | None, limit: int, as_json: bool) -> None:
    """List open windows, the first due first.

    \b
    turnout pending list --flow digest
    turnout pending --json | jq 'select(.events > 100)'
    """
    rows = run_async(_list(settings, flow, limit))
    if as_json:
        for row in rows:
            print_json(row)
        return
    ids = short_ids([row["id"] for row in rows], among=len(rows))
    table(
        (
            Column("window"), Column("flow", 12), Column("rule", 12), Column("key", 8),
            Column("events"), Column("opened", time=True, optional=True), Column("due", time=True),
            Column("suspended", 12),
        ),
        (
            (
                ids[row["id"]], row["flow"], row["rule"], row["key"], row["events"],
                row["opened_at"], row["due_at"], _suspended(row),
            )
            for row in rows
        ),
        empty="no window is open",
    )  # fmt: skip
    if len(rows) == limit:
        complain(f"these are the first {limit}; --limit shows more")


@pending.command("show")
@click.argument("window_id", metavar="WINDOW")
@utc_option
@with_json
@with_settings
def show_pending(settings: Settings, window_id: str, as_json: bool) -> None:
    """Show a window: its rule, when it closes, its events, and what is missing of a pattern.

    \b
    turnout pending show 3f9a1c2b
    """
    window = run_async(_show(settings, window_id))
    if as_json:
        print_json(window)
    else:
        _print(window)


@pending.command("fire")
@click.argument("window_ids", metavar="WINDOW...", nargs=-1, required=True)
@by_option
@with_change()
def fire_pending(change: Change, window_ids: tuple[str, ...], by: str | None) -> None:
    """Close windows now, as if complete: each starts its run with the events it has.

    Needs a running service: the run uses its code.

    \b
    turnout pending fire 3f9a1c2b
    """
    from turnout.service.operate.verbs import FireWindow

    def tell(window: dict[str, Any]) -> None:
        say(f"window of flow {window['flow']} fired: run {window['run']}")

    change.do(*(FireWindow(window_id, who(by)) for window_id in window_ids), tell=tell)


@pending.command("drop")
@click.argument("window_ids", metavar="WINDOW...", nargs=-1, required=True)
@by_option
@with_change(asks=True)
def drop_pending(change: Change, window_ids: tuple[str, ...], by: str | None) -> None:
    """Close windows without starting a run (asks first); files of their events stay.

    \b
    turnout pending drop 3f9a1c2b
    """
    from turnout.service.operate.verbs import DropWindow

    def tell(window: dict[str, Any]) -> None:
        held = f"{window['events']} event{'s' * (window['events'] != 1)}"
        say(f"window of flow {window['flow']} dropped, with {held}")

    change.do(*(DropWindow(window_id, who(by)) for window_id in window_ids), tell=tell)


# ---------------------------------------------------------------- reading


async def _list(settings: Settings, flow: str | None, limit: int) -> list[dict[str, Any]]:
    """Read open windows from the service, which knows which are suspended, or from the journal."""
    from turnout.service.operate.windows import window_documents

    from .session import open_journal_reader, open_service, service_url

    if await service_url(settings) is not None:
        asked = {"limit": str(limit)} | ({} if flow is None else {"flow": flow})
        async with open_service(settings) as client:
            return list((await client.call("GET", "/api/pending", params=asked))["items"])
    async with open_journal_reader(settings) as reader:
        return await window_documents(reader, flow, limit, {})


async def _show(settings: Settings, window_id: str) -> dict[str, Any]:
    from urllib.parse import quote

    from turnout.service.operate.windows import window_document

    from .session import open_journal_reader, open_service, service_url

    if await service_url(settings) is not None:
        async with open_service(settings) as client:
            path = f"/api/pending/{quote(window_id, safe='')}"
            return dict(await client.call("GET", path))
    async with open_journal_reader(settings) as reader:
        return await window_document(reader, window_id, {})


# ---------------------------------------------------------------- printing


def _suspended(row: dict[str, Any]) -> str:
    if row["suspended"] is not None:
        return str(row["suspended"])
    return "suspended" if row["remaining_seconds"] is not None else ""


def _print(window: dict[str, Any]) -> None:
    heading(f"window {window['id']}  {window['flow']}  {window['state']}")
    left = window["remaining_seconds"]
    print_facts(
        ("rule", window["rule"]),
        ("key", window["key"]),
        ("opened", stamp(window["opened_at"])),
        ("due", stamp(window["due_at"])),
        ("suspended", _suspended(window) or None),
        ("left", None if left is None else f"{left:.0f}s"),
        ("closed", stamp(window["closed_at"])),
        ("missing", ", ".join(window["missing"])),
        ("run", window["run"]),
    )
    if window["members"]:
        heading(f"events ({window['events']})")
        table(
            (
                Column("event"), Column("came", time=True), Column("trigger", 14),
                Column("source", 8),
            ),
            (
                (each["event_id"], each["at"], each["trigger"], each["event_source"])
                for each in window["members"]
            ),
            empty="",
        )  # fmt: skip
    if window["left_out"]:
        say(f"… and {window['left_out']} more")
