"""`turnout doctor`."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import click

from .options import run_async, with_json, with_settings
from .output import console, print_json, say

if TYPE_CHECKING:
    from turnout.service.settings import Settings


@click.command()
@with_json
@with_settings
def doctor(settings: Settings, as_json: bool) -> None:
    """Examine the journal and the machine.

    Prints each check as it ends and exits 1 if there is a problem. It only reads, so it may run
    while the service runs.

    \b
    turnout doctor
    turnout doctor --data /var/lib/turnout --json
    """
    if run_async(_examine(settings, as_json=as_json), prints=True):
        raise SystemExit(1)


async def _examine(settings: Settings, *, as_json: bool) -> int:
    from .session import open_journal_reader

    failed = 0
    async with open_journal_reader(settings) as reader:
        sqlite = await reader.read(
            lambda connection: connection.execute("SELECT sqlite_version()").get
        )
        failed += _print_check(f"SQLite {sqlite}", None, as_json=as_json)
        for name, problem in _machine_checks(settings):
            failed += _print_check(name, problem, as_json=as_json)
        checks = reader.examine()
        while True:
            with console().status("examining the journal"):
                found = await anext(checks, None)
            if found is None:
                break
            failed += _print_check(*found, as_json=as_json)
    return failed


def _machine_checks(settings: Settings) -> list[tuple[str, str | None]]:
    from turnout.service.governance.ownership import rights_of_others
    from turnout.service.journal.sqlite.files import journal_folder
    from turnout.service.journal.sqlite.lock import read_lock

    holder = read_lock(settings.data)
    writer = "nobody" if holder is None else f"process {holder.pid} {holder.url or ''}".strip()
    free = shutil.disk_usage(settings.data).free
    folder = journal_folder(settings.data)
    open_to_others = rights_of_others(folder)
    return [
        (f"written by {writer}", None),
        (
            f"disk has {free // 2**20} MiB free",
            None if free >= settings.min_free_bytes
            else f"intake stops below {settings.min_free_bytes // 2**20} MiB; free some space",
        ),
        (
            "only the owner can open the journal's folder",
            f"others can open it; run: chmod 700 {folder}" if open_to_others else None,
        ),
    ]  # fmt: skip


def _print_check(name: str, problem: str | None, *, as_json: bool) -> int:
    if as_json:
        print_json({"check": name, "ok": problem is None, "problem": problem})
    elif problem is None:
        click.echo(click.style("ok    ", fg="green") + name)
    else:
        click.echo(click.style("FAIL  ", fg="red", bold=True) + name)
        say(f"      {problem}")
    return problem is not None
