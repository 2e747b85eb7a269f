"""`turnout upgrade`."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .options import with_json, with_settings
from .output import print_facts, print_json, say, telling

if TYPE_CHECKING:
    from turnout.service.journal.records import UpgradePlan
    from turnout.service.settings import Settings


@click.command()
@click.option("--plan", "only_plan", is_flag=True, help="Only say what it takes; reads only.")
@with_json
@with_settings
def upgrade(settings: Settings, only_plan: bool, as_json: bool) -> None:
    """Bring the journal to the version that this turnout writes.

    The start of `turnout serve` does the same; this does it before, while the service is stopped.
    The journal is first copied beside itself, as journal-vN.db, which is the way back. With --plan
    it says the steps, the time and the free space it takes, also beside a running service, and
    exits 1 if there is too little space.

    \b
    turnout upgrade --plan
    turnout upgrade --data /var/lib/turnout
    """
    from turnout.service.journal.upgrade import read_upgrade_plan
    from turnout.service.journal.upgrade import upgrade as upgrade_journal

    plan = read_upgrade_plan(settings.data, min_free_bytes=settings.min_free_bytes)
    if not only_plan and plan.steps:
        with telling() as tell:
            upgrade_journal(settings.data, min_free_bytes=settings.min_free_bytes, progress=tell)
    if as_json:
        print_json(_document(plan))
    else:
        _print(plan, done=not only_plan)
    if only_plan and plan.steps and not plan.has_space:
        raise SystemExit(1)


def _document(plan: UpgradePlan) -> dict[str, object]:
    return {
        "journal_version": plan.found, "newest_version": plan.newest,
        "migrations": list(plan.steps), "bytes": plan.bytes, "needed_bytes": plan.needed_bytes,
        "free_bytes": plan.free_bytes, "estimated_seconds": round(plan.seconds, 1),
    }  # fmt: skip


def _print(plan: UpgradePlan, *, done: bool) -> None:
    if not plan.steps:
        say(f"the journal has version {plan.found}, which this turnout writes: nothing to do")
        return
    if done:
        say(f"upgraded from version {plan.found} to {plan.newest}; journal-v{plan.found}.db is the "
            "journal as it was")  # fmt: skip
        return
    print_facts(
        ("journal", f"version {plan.found}, {_size(plan.bytes)}"),
        ("upgrade to", f"version {plan.newest}"),
        ("steps", ", ".join(plan.steps)),
        ("time", f"about {max(1, round(plan.seconds))} s, without the service"),
        ("free space", f"{_size(plan.free_bytes)}; it needs {_size(plan.needed_bytes)}, mostly for "
                       f"the copy journal-v{plan.found}.db"),
    )  # fmt: skip
    if not plan.has_space:
        say("there is too little space: turnout would refuse to start; free some")


def _size(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
