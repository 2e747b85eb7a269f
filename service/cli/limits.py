"""`turnout limits`: what is in use of limits, rates and breakers; `set` and `reset` a limit."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .changes import Change, with_change
from .options import read_duration, with_json, with_settings
from .output import print_json, say, short
from .pauses import by_option, who
from .tables import Column, table
from .times import stamp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from turnout.service.settings import Settings


@click.group(invoke_without_command=True)
@with_json
@with_settings
@click.pass_context
def limits(context: click.Context, settings: Settings, as_json: bool) -> None:
    """Show what limits, rates, breakers and budgets have in use; set a limit.

    A line for each says how much of how much is in use, how many runs of its flows are due and
    for how long the oldest, and in what time the next may start (without one: when a run ends).
    "2h, then 3" means that an operator has set the limit, and that 3 is what flow files say. Below
    a rule with per= stand its busiest keys. Needs a running service.

    \b
    slots     runs at once, of all flows (the setting "concurrency")
    limit     runs at once: limit(…), limit("name", …)
    rate      starts within the period: throttle(…)
    breaker   failures that count, of those that open it: dependency(…)
    priority  runs of a class: priority=
    budget    what runs have taken within the period: budget(…)

    \b
    turnout limits
    turnout limits --json | jq 'select(.queued > 1000)'
    turnout limits set db 10 --for 2h         10 instead of what flow files say
    turnout limits reset db
    """
    if context.invoked_subcommand is None:
        _show(settings, as_json=as_json)


@limits.command("set")
@click.argument("name", metavar="NAME")
@click.argument("count", metavar="N", type=int)
@click.option("--for", "lasts", required=True, metavar="TIME", help="How long: 30m, 2h, 1d.")
@click.option("--note", default="", metavar="WHY", help="Why; shown with the limit.")
@by_option
@with_change()
def set_limit(change: Change, name: str, count: int, lasts: str, note: str, by: str | None) -> None:
    """Override a limit for a while, over restarts and deploys too.

    NAME is that of a named limit, such as "db" of limit("db", 3), or of the flow that declares it;
    its second limit is FLOW/limit.2. Afterwards the flow file holds again, so a lasting change
    belongs there. A higher number starts runs at once, a lower one stops none.

    \b
    turnout limits set db 10 --for 2h
    turnout limits set bill 1 --for 30m --note "the bank is slow"
    """
    from turnout.service.operate.verbs import SetLimit

    def tell(made: dict[str, Any]) -> None:
        say(f"limit {short_name(made['name'])} is {made['count']} until {stamp(made['until'])}")

    change.do(SetLimit(name, count, read_duration("--for", lasts), note, who(by)), tell=tell)


@limits.command("reset")
@click.argument("name", metavar="NAME")
@by_option
@with_change()
def reset_limit(change: Change, name: str, by: str | None) -> None:
    """Remove an override: the flow file holds again.

    \b
    turnout limits reset db
    """
    from turnout.service.operate.verbs import ResetLimit

    def tell(done: dict[str, Any]) -> None:
        say(f"limit {short_name(done['name'])} is what the flow file says again")

    change.do(ResetLimit(name, who(by)), tell=tell)


def short_name(full: str) -> str:
    """Return the name of a limit as operators write it."""
    return full.partition(":")[2].removesuffix("/limit")


# ---------------------------------------------------------------- the list


def _show(settings: Settings, *, as_json: bool) -> None:
    from turnout.service.domain.clock import wall_clock

    from .session import list_from_service

    rows = list_from_service(settings, "/api/limits")
    if as_json:
        for row in rows:
            print_json(row)
        return
    now = wall_clock()()
    table(
        (
            Column("name", 12),
            Column("rule"),
            Column("in use"),
            Column("due"),
            Column("oldest"),
            Column("next in"),
            Column("set for"),
        ),
        (line for row in rows for line in _lines(row, now)),
        empty="no limits",
    )


def _lines(row: dict[str, Any], now: datetime) -> Iterator[tuple[object, ...]]:
    """Yield the line of a rule, and those of its busiest keys."""
    override = row["override"]
    age = row["oldest_due_seconds"]
    yield (
        row["name"], row["kind"], _used(row), row["queued"] or "",
        "" if age is None else _seconds(age), _left(row["next_free"], now),
        "" if override is None else _set_for(row, now),
    )  # fmt: skip
    for key in row["keys"]:
        used = f"{key['used']}/{row['max']}"
        yield f"  {short(key['key'], 16)}", "", used, "", "", _left(key["next_free"], now), ""
    if row["key_count"] > len(row["keys"]):
        yield f"  and {row['key_count'] - len(row['keys'])} more keys", *[""] * 6


def _used(row: dict[str, Any]) -> str:
    """Return how much is in use of how much; of an open breaker that it is open."""
    if row["state"] not in (None, "closed"):
        return str(row["state"])
    return str(row["used"]) if row["max"] is None or row["keys"] else f"{row['used']}/{row['max']}"


def _set_for(row: dict[str, Any], now: datetime) -> str:
    """Return how long an operator's limit holds, and what flow files say."""
    declared = row["max"] if row["declared"] is None else row["declared"]
    return f"{_left(row['override']['until'], now)}, then {declared}"


def _left(until: str | None, now: datetime) -> str:
    """Return how long it is until an instant."""
    from datetime import datetime

    if until is None:
        return ""
    return _seconds(max((datetime.fromisoformat(until) - now).total_seconds(), 0))


def _seconds(seconds: float) -> str:
    """Return a duration in one or two units: 42s, 3m5s, 1h59m, 2d4h."""
    from datetime import timedelta

    from turnout.service.domain.units import format_duration

    unit = 1 if seconds < 3600 else 60 if seconds < 86_400 else 3600
    return format_duration(timedelta(seconds=round(seconds / unit) * unit))
