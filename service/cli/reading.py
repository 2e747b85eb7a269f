"""The commands that only read: lists of runs, events, flows and triggers, and `why`.

They read the journal directly, so they work whether the service is running or not. Only `flows`
and `triggers` ask the service, because only it knows what is loaded.
"""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from turnout.service.domain.errors import NotFound

from .acting import dead
from .options import chosen, run_async, with_filters, with_json, with_settings
from .output import clock, complain, heading, print_facts, print_json, say, short, table, took
from .showing import error_line, undo_words

if TYPE_CHECKING:
    from turnout.service.domain.run import Run
    from turnout.service.journal.contract import JournalReader
    from turnout.service.journal.records import Filter, StoredEvent
    from turnout.service.settings import Settings

limit_option = click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, help="How many at most."
)
all_option = click.option("--all", "everything", is_flag=True, help="No limit.")


@click.command()
@with_filters
@limit_option
@all_option
@with_json
@with_settings
def runs(
    settings: Settings, filters: dict[str, str], limit: int, everything: bool, as_json: bool
) -> None:
    """List runs, newest first.

    \b
    turnout runs
    turnout runs --flow bill --state failed --since 1d
    turnout runs --all --json | jq -r .id
    """
    which = chosen(filters)
    run_async(_list_runs(settings, which, None if everything else limit, as_json=as_json))


@dead.command("list")
@with_filters
@limit_option
@all_option
@with_json
@with_settings
def dead_list(
    settings: Settings, filters: dict[str, str], limit: int, everything: bool, as_json: bool
) -> None:
    """List dead letters, newest first.

    \b
    turnout dead list --flow bill --since 1d
    """
    which = chosen(filters, dead=True)
    run_async(_list_runs(settings, which, None if everything else limit, as_json=as_json))


async def _list_runs(
    settings: Settings, which: Filter, limit: int | None, *, as_json: bool
) -> None:
    from turnout.service.operate.filters import all_runs

    from .session import open_journal_reader

    found: list[Run] = []
    count = 0
    async with open_journal_reader(settings) as reader:
        async for run in all_runs(reader, which, at_most=limit):
            count += 1
            if as_json:
                print_json(run.as_dict())
            else:
                found.append(run)
    if not as_json:
        noun = "dead letter" if which.dead else "run"
        table(
            ("run", "flow", "state", "attempts", "queued (UTC)", "took", "error"),
            (_run_row(run) for run in found),
            empty=f"no {noun}s match",
        )
        if count == limit:
            complain(f"these are the newest {limit}; --limit or --all shows more")


def _state(run: Run) -> str:
    due = run.as_dict()["due_at"] and run.due_at
    return str(run.state) if due is None else f"{run.state} until {clock(due)}"


def _run_row(run: Run) -> tuple[object, ...]:
    why = run.reason or ""
    if run.error is not None:
        why = f"{run.error.type}: {run.error.message}"
    if run.undo in ("running", "failed"):
        why = f"undo: {undo_words(run.undo, run.undo_failed)}; {why}".removesuffix("; ")
    return (
        run.id, run.flow, _state(run), run.attempts, clock(run.queued_at),
        took(run.started_at, run.finished_at), short(why, 120),
    )  # fmt: skip


@click.command()
@with_filters
@limit_option
@with_json
@with_settings
def events(settings: Settings, filters: dict[str, str], limit: int, as_json: bool) -> None:
    """List events, newest first.

    `--flow` and `--state` select events by their runs.

    \b
    turnout events --trigger webhook:/orders --since 1h
    """
    from dataclasses import replace

    from turnout.service.operate.documents import event_of

    which = replace(chosen(filters), limit=limit)

    async def read() -> list[StoredEvent]:
        from .session import open_journal_reader

        async with open_journal_reader(settings) as reader:
            return await reader.events(which)

    found = run_async(read())
    if as_json:
        for stored in found:
            print_json(event_of(stored))
        return
    table(
        ("event", "trigger", "type", "source", "subject", "accepted (UTC)", "runs"),
        (
            (
                stored.event.id, stored.event.trigger, stored.event.type,
                short(stored.event.source, 80), short(stored.event.subject or "", 80),
                clock(stored.accepted_at), len(stored.runs),
            )
            for stored in found
        ),
        empty="no events match",
    )  # fmt: skip


@click.command()
@click.argument("event_id", metavar="EVENT")
@with_json
@with_settings
def why(settings: Settings, event_id: str, as_json: bool) -> None:
    """Explain which runs an event started, or why it started none.

    \b
    turnout why 0198c0de-…
    """
    found = run_async(_reasons(settings, event_id))
    for document in found:
        if as_json:
            print_json(document)
        else:
            _print_reasons(document)


async def _reasons(settings: Settings, event_id: str) -> list[dict[str, Any]]:
    from turnout.service.operate.documents import event_of

    from .session import open_journal_reader

    async with open_journal_reader(settings) as reader:
        found = await reader.event(event_id)
        if not found:
            raise NotFound(f"no event {event_id!r}; `turnout events` lists them")
        return [
            event_of(stored, payload=True) | {"runs": await _runs_of(reader, stored)}
            for stored in found
        ]


async def _runs_of(reader: JournalReader, stored: StoredEvent) -> list[dict[str, Any]]:
    read = [await reader.run(run_id) for run_id in stored.runs]
    return [run.as_dict() for run in read if run is not None]


def _print_reasons(event: dict[str, Any]) -> None:
    heading(f"event {event['id']}")
    print_facts(
        ("trigger", event["trigger"]),
        ("type", event["type"]),
        ("source", event["source"]),
        ("accepted", event["accepted_at"]),
    )
    for run in event["runs"]:
        say(f"  {run['flow']}: run {run['id']} {run['state']}  {error_line(run['error'])}".rstrip())
    for decision in event["decisions"]:
        subject = decision.get("flow") or "the event"
        detail, at = decision.get("detail"), decision.get("at")
        why = f" ({detail})" if detail else ""
        say(f"  {subject}: {decision.get('verdict')}{why}{f' at {at}' if at else ''}")
    if not event["runs"] and not event["decisions"]:
        say("  no flow listens for it")


@click.command()
@with_json
@with_settings
def flows(settings: Settings, as_json: bool) -> None:
    """List the flows of the running service."""
    rows = run_async(_ask_service(settings, "/api/flows"))
    if as_json:
        for row in rows:
            print_json(row)
        return
    table(
        ("flow", "state", "triggers", "retries", "limit", "where"),
        (
            (
                row["name"], "paused" if row["paused_at"] else "up",
                ", ".join(row["triggers"]), row["retries"], row["concurrency"] or "",
                f"{row['file']}:{row['line']}",
            )
            for row in rows
        ),
        empty="no flows",
    )  # fmt: skip


@click.command()
@with_json
@with_settings
def triggers(settings: Settings, as_json: bool) -> None:
    """List the triggers of the running service and whether they are up."""
    rows = run_async(_ask_service(settings, "/api/triggers"))
    if as_json:
        for row in rows:
            print_json(row)
        return
    table(
        ("trigger", "state", "flows", "problem"),
        (
            (
                row["name"], "paused" if row["paused_at"] else "up" if row["up"] else "down",
                ", ".join(row["flows"]), row["problem"] or "",
            )
            for row in rows
        ),
        empty="no triggers",
    )  # fmt: skip


async def _ask_service(settings: Settings, path: str) -> list[dict[str, Any]]:
    from .session import open_service

    async with open_service(settings) as client:
        return list((await client.call("GET", path))["items"])
