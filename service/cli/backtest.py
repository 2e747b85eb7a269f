"""`turnout backtest FLOW`: what a flow would have started of the events that are stored."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from turnout.service.domain.errors import SetupError

from .options import read_duration, run_async, with_json, with_settings
from .output import heading, print_facts, print_json, say
from .tables import Column, table

if TYPE_CHECKING:
    from datetime import timedelta

    from turnout.service.settings import Settings

_SHOWN = 20
_OBJECTS_BETWEEN_COLLECTIONS = 100_000


@click.command()
@click.argument("target", metavar="[FILE.py|FOLDER:]FLOW")
@click.option("--since", default="7d", show_default=True, help="How far back, such as 12h.")
@click.option(
    "--file", type=click.Path(path_type=Path), metavar="FILE.py", help="The flow's code to try."
)
@with_json
@with_settings
def backtest(settings: Settings, target: str, since: str, file: Path | None, as_json: bool) -> None:
    """Ask a flow about the stored events again, and compare with what it did.

    Filter, parameters, windows, unique, mode and rate limits are asked, each event at its own
    time; what only delays runs is not. Nothing starts, and the journal is only read, with the
    service running or down. Without a file, the running service's is asked, or the working
    folder's.

    \b
    turnout backtest bill --since 7d
    turnout backtest bill --file new.py --json | jq .differences
    """
    gc.freeze()  # what is loaded stays, and looking at it for each thousand events takes a third
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    path, _, name = target.rpartition(":")
    length = read_duration("--since", since)
    chosen = file or (Path(path) if path else None)
    document = run_async(_backtest(settings, name, chosen, length))
    if as_json:
        print_json(document)
    else:
        _print(document)


async def _backtest(
    settings: Settings, name: str, file: Path | None, length: timedelta
) -> dict[str, Any]:
    from turnout.service.domain.clock import wall_clock
    from turnout.service.operate.backtest import KeepTimes
    from turnout.service.operate.backtest import backtest as asked
    from turnout.service.project.loader import loading

    from .session import open_journal_reader

    path = file or await _served_file(settings, name) or Path()
    now = wall_clock()()
    keep_times = KeepTimes(settings.keep_unmatched, settings.keep_finished)
    with loading([path]) as project:
        if not any(name in (flow.name, flow.was) for flow in project.flows.values()):
            known = ", ".join(sorted(project.flows))
            raise SetupError(f"no flow {name!r} in {path}; there are: {known}")
        async with open_journal_reader(settings) as reader:
            report = await asked(
                reader, project, name, since=now - length, until=now, keep_times=keep_times
            )
    return report.as_dict()


async def _served_file(settings: Settings, name: str) -> Path | None:
    """Return the file of a flow that the running service has loaded."""
    from turnout.service.domain.errors import TurnoutError

    from .session import open_service

    try:
        async with open_service(settings) as client:
            flows = (await client.call("GET", "/api/flows"))["items"]
    except TurnoutError:
        return None
    return next((Path(flow["file"]) for flow in flows if flow["name"] == name), None)


def _print(report: dict[str, Any]) -> None:
    heading(f"backtest of {report['flow']}")
    print_facts(
        ("code", report["code_version"]),
        ("since", report["since"]),
        ("until", report["until"]),
        ("events", f"{report['events']:,}"),
        ("different", f"{report['different']:,}"),
    )
    outcomes = sorted({*report["did"], *report["would"]}, key=_order)
    table(
        (Column("event"), Column("did"), Column("would")),
        ((one, report["did"].get(one, 0), report["would"].get(one, 0)) for one in outcomes),
        empty="the flow was asked about no event",
    )
    if report["windows"] is not None:
        _print_windows(report["windows"])
    heading("triggers")
    table(
        (Column("trigger", 16), Column("events"), Column("since", time=True), Column("not seen")),
        (
            (each["name"], each["events"], each["since"] or "", "; ".join(each["notes"]))
            for each in report["triggers"]
        ),
        empty="none",
    )
    for note in report["notes"]:
        say(note)
    shown = report["differences"][:_SHOWN]
    if shown:
        heading("differences")
        table(
            (
                Column("event", 8), Column("accepted", time=True), Column("did"),
                Column("would"), Column("why", 20),
            ),
            (
                (each["event"], each["accepted_at"], each["did"], each["would"], each["why"])
                for each in shown
            ),
            empty="",
        )  # fmt: skip
    if report["different"] > len(shown):
        say(f"and {report['different'] - len(shown):,} more; --json shows up to 1,000")


def _print_windows(windows: dict[str, Any]) -> None:
    heading(f"windows of {windows['kind']}")
    print_facts(
        ("runs", f"{windows['runs']['did']:,}"),
        ("would be", f"{windows['runs']['would']:,}"),
        ("different", f"{windows['different']:,}"),
    )
    outcomes = sorted({*windows["did"], *windows["would"]}, key=_order)
    table(
        (Column("window"), Column("did"), Column("would")),
        ((one, windows["did"].get(one, 0), windows["would"].get(one, 0)) for one in outcomes),
        empty="there was no window",
    )
    shown = windows["differences"][:_SHOWN]
    if shown:
        heading("different windows")
        table(
            (
                Column("key"), Column("opened", time=True), Column("did"), Column("would"),
                Column("why", 20),
            ),
            (
                (
                    (each["would"] or each["did"])["key"],
                    (each["would"] or each["did"])["opened_at"],
                    _came_to(each["did"]), _came_to(each["would"]), each["why"],
                )
                for each in shown
            ),
            empty="",
        )  # fmt: skip
    if windows["different"] > len(shown):
        say(f"and {windows['different'] - len(shown):,} more; --json shows up to 1,000")


def _came_to(closing: dict[str, Any] | None) -> str:
    """Say what a window came to, such as "started with 3 events"."""
    if closing is None:
        return "no such window"
    count = closing["count"]
    return f"{closing['outcome']} with {count:,} event{'' if count == 1 else 's'}"


def _order(outcome: str) -> tuple[bool, str]:
    return outcome != "started", outcome
