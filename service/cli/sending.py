"""`turnout emit` and `turnout fire`: send the service an event, or fire a trigger.

Also how `--input` is read in every command: JSON, `@FILE`, or `-` for standard input.
"""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from .options import run_async, with_json, with_settings
from .output import complain, print_json, say

if TYPE_CHECKING:
    from turnout.service.settings import Settings


@click.command()
@click.argument("trigger", metavar="TRIGGER")
@click.option("--input", "input_text", metavar="JSON", help="The event's data: JSON, @FILE or -.")
@with_json
@with_settings
def fire(settings: Settings, trigger: str, input_text: str | None, as_json: bool) -> None:
    """Start the flows of a trigger now.

    The event carries the data of --input, or none. If no flow accepts it, nothing is stored.
    Needs a running service; `turnout triggers` lists the names.

    \b
    turnout fire 'cron:0 9 * * *'
    turnout fire webhook:/orders --input '{"id": "7", "amount": 3}'
    """
    from urllib.parse import quote

    data = None if input_text is None else read_json(input_text)
    path = f"/api/triggers/{quote(trigger, safe='')}/fire"
    _show_receipt(run_async(_call(settings, "POST", path, data)), as_json=as_json)


@click.command()
@click.argument("file", required=False, type=click.File("rb"))
@click.option("--type", "event_type", metavar="TYPE", help="The event's type, instead of FILE.")
@click.option("--input", "input_text", metavar="JSON", help="With --type: its data, or @FILE.")
@click.option("--source", default="turnout:cli", show_default=True, help="With --type: its source.")
@click.option("--subject", metavar="SUBJECT", help="With --type: its subject.")
@with_json
@with_settings
def emit(
    settings: Settings, file: IO[bytes] | None, event_type: str | None, input_text: str | None,
    source: str, subject: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Send an event to the running service.

    It starts the flows with `on=event(TYPE)`. FILE holds one CloudEvent as JSON; - is standard
    input.

    \b
    turnout emit event.json
    turnout emit --type order.placed --input '{"id": "7", "amount": 3}'
    """
    from turnout.service.domain.cloudevents import STRUCTURED

    if (file is None) == (event_type is None):
        raise click.UsageError("give a FILE with one CloudEvent, or --type")
    body = _envelope(event_type, input_text, source, subject) if file is None else file.read()
    receipt = run_async(_call(settings, "POST", "/api/events", body, STRUCTURED))
    _show_receipt(receipt, as_json=as_json)


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


def read_json(input_text: str) -> bytes:
    """Return the bytes of `--input`, which is JSON; a usage error says where it is not."""
    from turnout.service.domain.errors import InvalidData
    from turnout.service.domain.payload import decode_json

    data = read_input(input_text)
    try:
        decode_json(data)
    except InvalidData as error:
        raise click.UsageError(f"--input: {error}") from None
    return data


def read_input(input_text: str) -> bytes:
    """Return the bytes of an option: the text itself, `@FILE`, or `-` for standard input."""
    if input_text == "-":
        return sys.stdin.buffer.read()
    if not input_text.startswith("@"):
        return input_text.encode()
    try:
        return Path(input_text[1:]).read_bytes()
    except OSError as error:
        raise click.UsageError(f"cannot read {input_text[1:]}: {error.strerror}") from None


async def _call(
    settings: Settings, method: str, path: str, body: bytes | None = None,
    content_type: str = "application/json",
) -> Any:  # fmt: skip
    from .session import open_service

    async with open_service(settings) as client:
        return await client.call(method, path, body=body, content_type=content_type)


def _show_receipt(receipt: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(receipt)
        return
    runs = ", ".join(receipt["runs"]) or "none"
    say(f"event {receipt['event']}{' (a duplicate)' * receipt['duplicate']}; runs: {runs}")
    for flow, reason in receipt.get("refusals", {}).items():
        complain(f"flow {flow} refused it: {reason}")
