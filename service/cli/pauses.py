"""`turnout pause` and `resume`: flows, triggers, and everything."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from .changes import Change, with_change
from .options import read_duration, run_async
from .output import lasted, print_json, say
from .tables import Column, table
from .times import stamp, utc_option

if TYPE_CHECKING:
    from turnout.service.settings import Settings

by_option = click.option("--by", metavar="NAME", help="Who does it.  [default: your user name]")


@click.command()
@click.argument("names", metavar="[FLOW|TRIGGER]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Pause everything: no run starts.")
@click.option("--for", "lasts", metavar="TIME", help="End the pause by itself: 30m, 2h, 1d.")
@click.option("--note", default="", metavar="WHY", help="Why; shown wherever the pause is listed.")
@by_option
@click.option("--list", "listed", is_flag=True, help="Only list what is paused.")
@utc_option
@with_change()
def pause(
    change: Change, names: tuple[str, ...], everything: bool, lasts: str | None, note: str,
    by: str | None, listed: bool,
) -> None:  # fmt: skip
    """Pause flows or triggers, or everything.

    A paused flow accepts events, and its runs wait. A paused trigger accepts none: a webhook
    answers 503, files and Kafka records stay where they are, and missed ticks follow the timer's
    missed=. With --all every event is accepted and no run starts anywhere. What runs already goes
    on to its end.

    A pause lasts, over restarts too, until `turnout resume` or the end of --for. Pausing again
    sets a new end and note.

    \b
    turnout pause bill --note "the bank migrates"
    turnout pause webhook:/orders --for 1h
    turnout pause --all --for 30m --note "wrong deploy"
    turnout pause --list                      what is paused, until when, by whom
    """
    from turnout.service.operate.verbs import Pause

    if listed:
        run_async(_list(change.settings, as_json=change.as_json), prints=True)
        return
    length = None if lasts is None else read_duration("--for", lasts)
    author = who(by)
    verbs = [Pause(name, length, note, author) for name in _chosen(names, everything)]
    change.do(*verbs, tell=_say_paused)


@click.command()
@click.argument("names", metavar="[FLOW|TRIGGER]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="End what `turnout pause --all` began.")
@click.option("--discard", is_flag=True, help="End what waits instead of running it.")
@by_option
@utc_option
@with_change(asks=True)
def resume(
    change: Change, names: tuple[str, ...], everything: bool, discard: bool, by: str | None
) -> None:
    """Resume what is paused, and say what waited.

    All runs that waited start, oldest first. With --discard those that have not begun end as
    skipped, for the reason "dropped"; their files stay where they are. That is asked first, with
    the count. Runs that have begun before the pause go on all the same.

    --all is the counterpart of `turnout pause --all`. What was paused by its name stays paused
    until it is resumed by its name; the command lists it.

    \b
    turnout resume bill                       run everything that waited
    turnout resume bill --dry-run             how many runs wait
    turnout resume bill --discard             run only what comes from now on
    turnout resume --all
    """
    from turnout.service.operate.verbs import Resume

    author = who(by)
    change.yes = change.yes or not discard  # nothing is lost by a plain one
    verbs = [Resume(name, discard, author) for name in _chosen(names, everything)]
    change.do(*verbs, tell=_say_resumed)


def who(by: str | None) -> str:
    """Return who does it: the one named, or the user."""
    from getpass import getuser

    return by or getuser()


def _chosen(names: Sequence[str], everything: bool) -> Sequence[str]:
    """Return the names of what to pause or resume; `--all` stands for everything."""
    from turnout.service.journal.records import EVERYTHING

    if everything == bool(names):
        raise click.UsageError("name flows or triggers (turnout flows, turnout triggers), or --all")
    return [EVERYTHING] if everything else names


# ---------------------------------------------------------------- words


async def _list(settings: Settings, *, as_json: bool) -> None:
    """Print what is paused; reads the journal, service or not."""
    from turnout.service.domain.clock import wall_clock
    from turnout.service.operate.documents import pause_of

    from .session import open_journal_reader

    async with open_journal_reader(settings) as reader:
        pauses = await reader.pauses(now=wall_clock()())
    rows = [pause_of(pause) for pause in pauses.values()]
    if as_json:
        for row in rows:
            print_json(row)
        return
    table(
        (
            Column("paused", 12),
            Column("since", time=True),
            Column("until", time=True),
            Column("by", 8),
            Column("note", 8),
        ),
        ((_subject(row), row["paused_at"], row["until"], row["by"], row["note"]) for row in rows),
        empty="nothing is paused",
    )


def _subject(row: dict[str, Any]) -> str:
    kind, _, name = str(row["name"]).partition(":")
    return f"{kind} {name}" if name else "everything"


def pause_words(pause: dict[str, Any]) -> str:
    """Return the end, the author and the note of a pause in words."""
    until = f" until {stamp(pause['until'])}" if pause["until"] else ""
    by = f" by {pause['by']}" if pause["by"] else ""
    return f"{until}{by}{': ' if pause['note'] else ''}{pause['note']}"


def state_of(row: dict[str, Any], else_: str) -> str:
    """Return whether a listed flow or trigger is paused, with the end of the pause."""
    pause = row["pause"]
    if pause is None:
        return else_
    return f"paused until {stamp(pause['until'])}" if pause["until"] else "paused"


def _say_paused(pause: dict[str, Any]) -> None:
    until = f" until {stamp(pause['until'])}" if pause["until"] else ""
    say(f"{_subject(pause)} paused{until}")


def _say_resumed(done: dict[str, Any]) -> None:
    subject = _subject(done)
    if done["was_paused"]:
        say(f"{subject} resumed; {_waited(done)}")
    else:
        say(f"{subject} was not paused")
    for pause in done["still"]:
        say(f"{_subject(pause)} is still paused{pause_words(pause)}")


def _waited(done: dict[str, Any]) -> str:
    """Return what waited, and what became of it."""
    from datetime import datetime

    from turnout.service.domain.clock import wall_clock

    count, discarded = done["waiting"], done["discarded"]
    if done["name"].startswith("trigger:"):
        return "it accepts events again"
    if not count:
        return "nothing waited"
    age = lasted(datetime.fromisoformat(done["oldest"]), wall_clock()())
    waited = f"{count} run{'s' * (count != 1)} waited, the oldest for {age}"
    if not discarded:
        return waited
    left = count - discarded
    return f"{waited}: {discarded} discarded{f', {left} had begun' if left else ''}"
