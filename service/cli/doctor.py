"""`turnout doctor`."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import click

from .options import run_async, with_json, with_settings
from .output import console, print_json, say

if TYPE_CHECKING:
    from pathlib import Path

    from turnout.service.operate.verdict import Verdict
    from turnout.service.settings import Settings

_MOST_ALERTS = 1000


@click.command()
@click.option(
    "--verdict",
    "only_verdict",
    is_flag=True,
    help="Only say at once how the service is: ok, degraded or down, and why.",
)
@with_json
@with_settings
def doctor(settings: Settings, as_json: bool, only_verdict: bool) -> None:
    """Examine the journal and the machine.

    Prints each check as it ends and exits 1 if there is a problem. It only reads, so it may run
    while the service runs.

    With --verdict it asks the service instead, and exits 0 if it is ok, 1 if it is degraded
    (something is not as it should be, and events are accepted) and 2 if it is down.

    \b
    turnout doctor
    turnout doctor --data /var/lib/turnout --json
    turnout doctor --verdict
    """  # fmt: skip
    if only_verdict:
        verdict = run_async(_verdict(settings))
        _print_verdict(verdict, as_json=as_json)
        raise SystemExit(list(type(verdict.health)).index(verdict.health))
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


async def _verdict(settings: Settings) -> Verdict:
    from turnout.service.client import Unavailable, connect
    from turnout.service.domain.errors import TurnoutError
    from turnout.service.journal.wake import read_next_wake
    from turnout.service.operate.verdict import Health, Verdict, judge

    from .session import open_journal_reader, service_url

    try:
        url = await service_url(settings)
        if url is None and read_next_wake(settings.data) is not None:
            document: dict[str, list[str]] = {"reasons": [], "warnings": []}  # idle, which is well
        elif url is None:
            raise Unavailable(f"no service uses {settings.data}")
        else:
            async with connect(url, None, certificate=settings.tls_certificate) as client:
                document = await client.readiness()
        async with open_journal_reader(settings) as reader:
            alerts = await reader.alerts(limit=_MOST_ALERTS)
    except TurnoutError as error:
        return Verdict(health=Health.DOWN, reasons=[str(error)])
    troubles = [
        *document["warnings"],
        *(problem for _, problem in _machine_checks(settings) if problem is not None),
        *_backup_troubles(settings),
    ]
    if alerts:
        troubles.append(f"{len(alerts)} open alerts: `turnout alerts` lists them")
    return judge(document["reasons"], troubles)


def _backup_troubles(settings: Settings) -> list[str]:
    from turnout.service.journal.backups import read_status

    status = read_status(settings.data)
    if status is None or status.failure is None:
        return []
    return [f"the last backup has failed: {status.failure}"]


def _print_verdict(verdict: Verdict, *, as_json: bool) -> None:
    if as_json:
        print_json({"verdict": str(verdict.health), "reasons": list(verdict.reasons)})
        return
    say(str(verdict.health))
    for reason in verdict.reasons:
        say(f"      {reason}")


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
        ("no other program writes the journal", _other_writer(folder)),
    ]  # fmt: skip


def _other_writer(folder: Path) -> str | None:
    """Return what is wrong where Litestream replicates the journal: it does checkpoints itself.

    turnout is the one that checks whether a checkpoint is on disk, so it must be the only one.
    """
    traces = [*folder.glob(".*-litestream")]
    if not traces:
        return None
    return (
        f"Litestream replicates it ({traces[0].name}), which does checkpoints that turnout must "
        "do; stop Litestream, remove that folder, and use: turnout backup --every 15m"
    )


def _print_check(name: str, problem: str | None, *, as_json: bool) -> int:
    if as_json:
        print_json({"check": name, "ok": problem is None, "problem": problem})
    elif problem is None:
        click.echo(click.style("ok    ", fg="green") + name)
    else:
        click.echo(click.style("FAIL  ", fg="red", bold=True) + name)
        say(f"      {problem}")
    return problem is not None
