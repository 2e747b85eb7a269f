"""`turnout events`, `replay` and `emit`. Reading works with and without a service."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

import click

from .bulk import accept_not_undone
from .changes import Change, with_change
from .options import (
    chosen,
    force_option,
    limit_option,
    read_json,
    run_async,
    with_filters,
    with_json,
    with_settings,
)
from .output import print_json, say, show_receipt
from .tables import Column, short_ids, table
from .times import utc_option

if TYPE_CHECKING:
    from turnout.service.journal.records import StoredEvent
    from turnout.service.settings import Settings


@click.command()
@with_filters
@limit_option
@utc_option
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
    ids = short_ids([stored.event.id for stored in found], among=found[0].seq if found else 0)
    table(
        (
            Column("event"), Column("accepted", time=True), Column("runs"), Column("trigger", 14),
            Column("source", 12, optional=True), Column("subject", 12, optional=True),
            Column("type", 10),
        ),
        (
            (
                ids[stored.event.id], stored.accepted_at, len(stored.runs), stored.event.trigger,
                stored.event.source, stored.event.subject, stored.event.type,
            )
            for stored in found
        ),
        empty="no events match",
    )  # fmt: skip


@click.command()
@click.argument("event_id", metavar="EVENT|RUN")
@click.option("--source", metavar="SOURCE", help="Which source, if several sent this id.")
@force_option
@with_change(asks=True)
def replay(change: Change, event_id: str, source: str | None, force: bool) -> None:
    """Run an event's flows again, as new runs; or the flow of one run, with the same events.

    Asks first if a run of the event is not undone. The mode of a flow (mode="skip") counts as for
    a new event, unless it is forced.

    \b
    turnout replay 3f9a1c2b
    turnout replay order-7 --source /shop
    """
    from turnout.service.operate.verbs import Replay

    def tell(done: dict[str, Any]) -> None:
        say(f"{event_id} replayed as {', '.join(done['runs'])}")

    before = run_async(_runs_started(change.settings, event_id, source))
    known = change.dry_run or accept_not_undone(change.settings, before, yes=change.yes)
    change.yes = True  # that was the only question
    change.do(Replay(event_id, source, known, force), tell=tell, more={"event": event_id})


async def _runs_started(settings: Settings, event_id: str, source: str | None) -> list[str]:
    from .session import open_journal_reader

    async with open_journal_reader(settings) as reader:
        found = await reader.event(event_id, source=source)
        run = None if found else await reader.run(event_id)
    return [run.id] if run is not None else [each for stored in found for each in stored.runs]


@click.command()
@click.argument("file", required=False, type=click.File("rb"))
@click.option("--type", "event_type", metavar="TYPE", help="The event's type, instead of FILE.")
@click.option("--input", "input_text", metavar="JSON", help="With --type: its data, or @FILE.")
@click.option("--source", default="turnout:cli", show_default=True, help="With --type: its source.")
@click.option("--subject", metavar="SUBJECT", help="With --type: its subject.")
@with_change()
def emit(
    change: Change, file: IO[bytes] | None, event_type: str | None, input_text: str | None,
    source: str, subject: str | None,
) -> None:  # fmt: skip
    """Send an event to the running service.

    It starts the flows with `on=event(TYPE)`. FILE holds one CloudEvent as JSON; - is standard
    input.

    \b
    turnout emit event.json
    turnout emit --type order.placed --input '{"id": "7", "amount": 3}'
    """
    from turnout.service.domain.cloudevents import structured
    from turnout.service.domain.units import utc_now
    from turnout.service.operate.verbs import Emit

    if (file is None) == (event_type is None):
        raise click.UsageError("give a FILE with one CloudEvent, or --type")
    body = _envelope(event_type, input_text, source, subject) if file is None else file.read()
    change.do(Emit(structured(body, now=utc_now())), tell=show_receipt)


def _envelope(
    event_type: str | None, input_text: str | None, source: str, subject: str | None
) -> bytes:
    from turnout.service.domain.event import mint_id
    from turnout.service.operate.documents import encode

    envelope = {"specversion": "1.0", "id": mint_id(), "source": source, "type": event_type}
    if subject is not None:
        envelope["subject"] = subject
    if input_text is None:
        return encode(envelope)
    data = read_json(input_text)
    return encode(envelope)[:-1] + b',"data":' + data + b"}"  # the bytes as the author wrote them
