"""`turnout backup` and `turnout restore`."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .exit_codes import PROBLEM
from .options import read_duration, with_json, with_settings
from .output import complain, console, print_facts, print_json, say
from .tables import Column, table
from .times import stamp, utc_option

if TYPE_CHECKING:
    from datetime import timedelta

    from turnout.service.settings import Settings

_LESS_URGENT = 10


class _Stopped(Exception):
    """Raised in a backup that is to end now."""


@click.command()
@click.option(
    "--to", "folder", required=True, metavar="DIR", type=click.Path(path_type=Path),
    help="Folder of the backups, on another disk.",
)  # fmt: skip
@click.option("--every", metavar="TIME", help="Make one so often, such as 15m, until SIGTERM.")
@click.option(
    "--keep", type=click.IntRange(1), metavar="N", help="Keep the newest N, delete older ones."
)
@with_json
@with_settings
def backup(
    settings: Settings, folder: Path, every: str | None, keep: int | None, as_json: bool
) -> None:
    """Back up the journal, with results and artefacts, also beside a running service.

    Each backup is one file, consistent, verified, and readable by its owner only. Keys and tokens
    are not in it. With --every a backup that fails is logged (backup.failed) and tried again.

    \b
    turnout backup --to /mnt/backups
    turnout backup --to /mnt/backups --every 15m --keep 48
    """
    from turnout.service.domain.clock import wall_clock
    from turnout.service.operate.backups import Backups

    interval = None if every is None else read_duration("--every", every)
    with suppress(PermissionError):  # a sandbox may refuse it: deploy/turnout.service does
        os.nice(_LESS_URGENT)
    if interval is not None:
        _keep_making(settings, folder, keep, interval, as_json=as_json)
        return
    with _progress("backing up") as progress:
        made = Backups(
            data=settings.data, folder=folder, keep=keep, min_free_bytes=settings.min_free_bytes,
            now=wall_clock(), progress=progress,
        ).make()  # fmt: skip
    if as_json:
        print_json(made)
        _exit_if_it_lacks(made)
        return
    say(f"{made['file']}: {_size(made['bytes'])}, verified")
    for path in made["pruned"]:
        say(f"{path} deleted")
    _exit_if_it_lacks(made)


def _exit_if_it_lacks(made: dict[str, Any]) -> None:
    """Exit 1 for a backup that could not take everything."""
    if made["lacks"] is not None:
        complain(f"error: {made['lacks']}")
        raise SystemExit(PROBLEM)


def _keep_making(
    settings: Settings, folder: Path, keep: int | None, interval: timedelta, *, as_json: bool
) -> None:
    """Make backups until SIGTERM or SIGINT, which also end the one under way."""
    import signal
    import threading

    from turnout.service.domain.clock import wall_clock
    from turnout.service.operate.backups import Backups
    from turnout.service.telemetry import logs

    logs.configure(settings.log_format, settings.log_level)
    leaving = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: leaving.set())

    def progress(_done: int, _total: int) -> None:
        if leaving.is_set():
            raise _Stopped

    backups = Backups(
        data=settings.data, folder=folder, keep=keep, min_free_bytes=settings.min_free_bytes,
        now=wall_clock(), progress=progress,
    )  # fmt: skip
    tell = print_json if as_json else _tell_nobody
    with suppress(_Stopped):
        backups.keep_making(interval, wait=leaving.wait, tell=tell)


def _tell_nobody(_made: dict[str, Any]) -> None:
    """Print nothing: the log says it."""


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Only verify it and say what is in it.")
@utc_option
@with_json
@with_settings
def restore(settings: Settings, file: Path, check: bool, as_json: bool) -> None:
    """Restore a backup into the data folder, or with --check only verify it.

    Prints what is in it, what runs again and what must be sent again. A journal that is there is
    moved aside, into a folder with the date; nothing is deleted. The service must be stopped,
    except for --check, which only reads.

    \b
    turnout restore /mnt/backups/turnout-….tar --check
    turnout restore /mnt/backups/turnout-….tar --data /var/lib/turnout
    """
    from turnout.service.domain.clock import wall_clock
    from turnout.service.journal.backups import read_backup, restore_backup
    from turnout.service.operate.backups import restore_of

    restored = None
    if check:
        with _progress("verifying") as progress:
            contents = read_backup(file, progress)
    else:
        with _progress("restoring") as progress:
            contents, restored = restore_backup(
                file, settings.data, now=wall_clock(), min_free_bytes=settings.min_free_bytes,
                progress=progress,
            )  # fmt: skip
    document = restore_of(contents, restored)
    if as_json:
        print_json(document)
    else:
        _print(document)


def _print(found: dict[str, Any]) -> None:
    print_facts(
        ("backup", found["file"]), ("taken", stamp(found["taken_at"])),
        ("by", f"turnout {found['program']}, journal version {found['journal_version']}"),
        ("size", f"{_size(found['bytes'])}, {found['files']} results and artefacts in files"),
        ("events", found["event_count"]),
        ("runs", ", ".join(f"{each['count']} {each['state']}" for each in found["states"])),
    )  # fmt: skip
    if found["lacks"] is None:
        say("verified: whole, and as it was written")
    else:
        say(f"verified, as it was written, but not whole: {found['lacks']}")
    say(
        f"runs again: the {found['unfinished']} unfinished runs go on from their recorded steps; "
        "so do those that have ended since then, steps and effects after it included"
        if found["unfinished"]
        else "runs again: none; all runs in it had ended"
    )
    table(
        (Column("trigger"), Column("last event", time=True), Column("lost since", time=True)),
        ((each["name"], each["last_event_at"], each["since"]) for each in found["triggers"]),
        empty="no trigger has brought anything yet",
    )
    advised: dict[str, list[str]] = {}
    for each in found["triggers"]:
        advised.setdefault(each["advice"], []).append(each["name"])
    for advice, names in advised.items():  # not in the table: a terminal would cut it off
        say(f"{', '.join(names)}: {advice}")
    if found["moved_to"] is not None:
        say(f"the journal that was there is in {found['moved_to']}")
    if found["restored_to"] is not None:
        say(f"restored to {found['restored_to']}; start turnout serve")


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show on a terminal how much is done."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.progress import Progress

    with Progress(console=console(), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
