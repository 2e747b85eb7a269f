"""The options that commands share, and helpers around a command."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .output import working
from .times import utc_option

if TYPE_CHECKING:
    from datetime import timedelta

    from turnout.service.journal.records import Filter

R = TypeVar("R")
Command = Callable[..., Any]

force_option = click.option(
    "--force", is_flag=True, help="Start beside what is under way, whatever mode= says."
)
limit_option = click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, help="How many at most."
)
data_option = click.option(
    "--data", type=click.Path(path_type=Path), metavar="DIR",
    help="Folder of the journal.  [TURNOUT_DATA; default: turnout-data]",
)  # fmt: skip
config_option = click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Settings file.  [default: turnout.toml, if there is one]",
)  # fmt: skip
flow_paths = click.argument(
    "paths", nargs=-1, required=True, metavar="FLOWS...", type=click.Path(path_type=Path)
)


def with_settings(command: Command) -> Command:
    """Give a command `--data` and `--config`, and pass it the resulting `settings`."""

    @data_option
    @config_option
    @functools.wraps(command)
    def wrapped(*args: Any, data: Path | None, config: Path | None, **kwargs: Any) -> Any:
        from turnout.service.settings import load

        return command(*args, settings=load(config, data=data), **kwargs)

    return wrapped


def with_json(command: Command) -> Command:
    """Give a command `--json`, as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON Lines, for programs.")(
        command
    )


def with_filters(command: Command) -> Command:
    """Give a command the filter options; it gets those that were given as `filters`."""

    @click.option("--flow", metavar="FLOW", help="Runs of this flow.")
    @click.option("--state", metavar="STATE", help="Runs in this state: failed, queued, …")
    @click.option(
        "--trigger", metavar="TRIGGER", help="Runs of this trigger, such as webhook:/orders."
    )
    @click.option("--event", metavar="EVENT", help="Runs of the event with this id.")
    @click.option("--owner", metavar="NAME", help="Runs of the flows of this owner.")
    @click.option("--tag", metavar="TAG", help="Runs of the flows with this tag.")
    @click.option("--since", metavar="WHEN", help="Since 2026-01-31T09:00:00Z, or an age: 2h.")
    @click.option("--until", metavar="WHEN", help="Before an instant, or an age.")
    @functools.wraps(command)
    def wrapped(
        *args: Any, flow: str | None, state: str | None, trigger: str | None,
        event: str | None, owner: str | None, tag: str | None, since: str | None,
        until: str | None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        named = {"flow": flow, "state": state, "trigger": trigger, "event": event,
                 "owner": owner, "tag": tag, "since": since, "until": until}  # fmt: skip
        filters = {name: word for name, word in named.items() if word is not None}
        return command(*args, filters=filters, **kwargs)

    return wrapped


def with_list(command: Command) -> Command:
    """Give a command that lists runs its filters, `limit` (None with `--all`) and `--json`."""

    @with_filters
    @limit_option
    @click.option("--all", "everything", is_flag=True, help="No limit.")
    @utc_option
    @with_json
    @with_settings
    @functools.wraps(command)
    def wrapped(*args: Any, limit: int, everything: bool, **kwargs: Any) -> Any:
        return command(*args, limit=None if everything else limit, **kwargs)

    return wrapped


def chosen(filters: dict[str, str], *, dead: bool | None = None) -> Filter:
    """Return the journal's filter; a value that cannot be read is a usage error."""
    from dataclasses import replace

    from turnout.service.domain.clock import wall_clock
    from turnout.service.domain.errors import InvalidData
    from turnout.service.operate.filters import read_filter

    try:
        return replace(read_filter(now=wall_clock()(), **filters), dead=dead)
    except InvalidData as error:
        raise click.UsageError(str(error)) from None


def read_duration(option: str, text: str) -> timedelta:
    """Return a duration such as 2h; one that cannot be read, and 0, are usage errors."""
    from turnout.service.domain.errors import SetupError
    from turnout.service.domain.units import parse_duration

    try:
        length = parse_duration(text)
    except SetupError as error:
        raise click.UsageError(f"{option}: {error}") from None
    if not length:
        raise click.UsageError(f"{option}: it must be longer than 0s")
    return length


def run_async(work: Coroutine[Any, Any, R], *, prints: bool = False) -> R:
    """Run a command's coroutine to its end; on a terminal it says so if that takes a while.

    `prints`: it writes to the terminal itself meanwhile.
    """
    import asyncio

    with nullcontext() if prints else working("reading the journal"):
        return asyncio.run(work)


def read_json(input_text: str, *, option: str = "--input") -> bytes:
    """Return the bytes of an option, which is JSON; a usage error says where it is not."""
    from turnout.service.domain.errors import InvalidData
    from turnout.service.domain.payload import decode_json

    data = read_input(input_text)
    try:
        decode_json(data)
    except InvalidData as error:
        raise click.UsageError(f"{option}: {error}") from None
    return data


def read_input(input_text: str) -> bytes:
    """Return the bytes of an option: JSON itself, `@FILE`, or `-` for standard input."""
    if input_text == "-":
        return sys.stdin.buffer.read()
    if not input_text.startswith("@"):
        return input_text.encode()
    try:
        return Path(input_text[1:]).read_bytes()
    except OSError as error:
        raise click.UsageError(f"cannot read {input_text[1:]}: {error.strerror}") from None
