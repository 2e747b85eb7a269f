"""`turnout alerts`: what people are told of. Listing reads the journal, service or not."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .changes import Change, with_change
from .options import read_duration, run_async, with_json, with_settings
from .output import print_json, say
from .pauses import by_option, who
from .tables import Column, table
from .times import stamp, utc_option

if TYPE_CHECKING:
    from turnout.service.settings import Settings


@click.group(invoke_without_command=True)
@click.option("--flow", metavar="FLOW", help="Alerts of this flow.")
@click.option("--owner", metavar="NAME", help="Alerts of the flows of this owner.")
@click.option("--tag", metavar="TAG", help="Alerts of the flows with this tag.")
@click.option("--all", "everything", is_flag=True, help="Also those that are over.")
@utc_option
@with_json
@with_settings
@click.pass_context
def alerts(
    context: click.Context, settings: Settings, flow: str | None, owner: str | None,
    tag: str | None, everything: bool, as_json: bool,
) -> None:  # fmt: skip
    """List open alerts: which flows fail, are late or do not run, and who was told when.

    An alert is one cause of a flow, from when it first shows until the flow has recovered from it.

    \b
    turnout alerts
    turnout alerts --owner payments --all --json
    turnout alerts mute 12 --for 2h --note "the bank knows"
    """
    if context.invoked_subcommand is not None:
        return
    rows = run_async(_read(settings, flow, owner, tag, ended=everything))
    if as_json:
        for row in rows:
            print_json(row)
        return
    table(
        (
            Column("alert"), Column("flow", 12), Column("state"), Column("what", 24),
            Column("times"), Column("since", time=True), Column("last", time=True),
            Column("told", optional=True), Column("owner", 12, optional=True),
        ),
        (
            (
                row["id"], row["flow"], row["state"], _what(row), row["count"], row["opened_at"],
                row["last_at"], row["messages"], row["owner"] or "",
            )
            for row in rows
        ),
        empty="no alerts" if everything else "no open alerts",
    )  # fmt: skip


@alerts.command("mute")
@click.argument("alert", metavar="ALERT")
@click.option("--for", "lasts", metavar="TIME", help="How long: 30m, 2h; else until it is over.")
@click.option("--note", default="", metavar="WHY", help="Why; shown with the alert.")
@by_option
@utc_option
@with_change()
def mute(change: Change, alert: str, lasts: str | None, note: str, by: str | None) -> None:
    """Tell nobody more of an open alert; that it is over is told.

    \b
    turnout alerts mute 12 --for 2h --note "the bank knows"
    """
    from turnout.service.operate.verbs import MuteAlert

    def tell(muted: dict[str, Any]) -> None:
        until = "until it is over" if lasts is None else f"until {stamp(muted['muted_until'])}"
        say(f"alert {muted['id']} of {muted['flow']} is muted {until}")

    length = None if lasts is None else read_duration("--for", lasts)
    change.do(MuteAlert(alert, length, note, who(by)), tell=tell)


def _what(row: dict[str, Any]) -> str:
    """Return what the alert is about: the cause of failures, else what was missed."""
    error = row["error"] or {}
    return str(row["cause"] if row["rule"] == "failure" else error.get("message") or row["cause"])


async def _read(
    settings: Settings, flow: str | None, owner: str | None, tag: str | None, *, ended: bool
) -> list[dict[str, Any]]:
    from turnout.service.domain.clock import wall_clock
    from turnout.service.operate.alerts import alert_documents

    from .session import open_journal_reader

    async with open_journal_reader(settings) as reader:
        return await alert_documents(
            reader, flow=flow, owner=owner, tag=tag, ended=ended, now=wall_clock()()
        )
