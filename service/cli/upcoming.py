"""`turnout next` and `turnout approvals`: what comes next, and what waits for whom."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from .options import limit_option, run_async, with_json, with_settings
from .output import complain, heading, lasted, print_facts, print_json, say
from .tables import Column, short_ids, table
from .times import stamp, utc_option, with_local_times

if TYPE_CHECKING:
    from turnout.service.settings import Settings


@click.command("next")
@click.option(
    "--wake",
    is_flag=True,
    help="Print only when an idle service must be started again, as systemd takes it.",
)
@limit_option
@utc_option
@with_json
@with_settings
def next_(settings: Settings, limit: int, as_json: bool, wake: bool) -> None:
    """List what fires or is due next: timers, and runs that wait for an instant.

    Reads the journal; a running service tells its timers, and so does one that has gone idle
    (--idle-exit). With --wake nothing is printed if nothing is due, or no service has gone idle.

    \b
    turnout next
    turnout next --limit 5 --utc
    systemd-run --on-calendar="$(turnout next --wake)" systemctl start turnout
    """  # fmt: skip
    from turnout.service.domain.clock import wall_clock

    if wake:
        _print_wake(settings, as_json)
        return
    rows = run_async(_upcoming(settings, limit), prints=True)
    if as_json:
        for row in rows:
            print_json(row)
        return
    now = wall_clock()()
    ids = short_ids([row["run"] for row in rows if row["run"]], among=0)
    table(
        (
            Column("at", time=True), Column("in"), Column("what"), Column("run or trigger", 12),
            Column("flow", 8), Column("detail", 8),
        ),
        (
            (
                row["at"], _until(row["at"], now), row["kind"],
                ids[row["run"]] if row["run"] else row["trigger"], ", ".join(row["flows"]),
                with_local_times(row["detail"] or ""),
            )
            for row in rows
        ),
        empty="nothing is due, and no timer ticks",
    )  # fmt: skip


async def _upcoming(settings: Settings, limit: int) -> list[dict[str, Any]]:
    import asyncio

    from turnout.service.journal.wake import read_next_wake
    from turnout.service.operate.upcoming import upcoming

    from .session import open_journal_reader, open_service, service_url

    if await service_url(settings) is not None:
        async with open_service(settings) as client:
            found = await client.call("GET", "/api/next", params={"limit": str(min(limit, 1000))})
            return list(found["items"])
    idle = await asyncio.to_thread(read_next_wake, settings.data)
    if idle is None:
        complain("no service is running, so no timer ticks: these are the runs of the journal")
    async with open_journal_reader(settings) as reader:
        return await upcoming(reader, () if idle is None else idle.ticks, limit=limit)


def _print_wake(settings: Settings, as_json: bool) -> None:
    """Print when a service that has gone idle must be there again, to the second."""
    from turnout.service.journal.wake import read_next_wake
    from turnout.service.operate.documents import instant

    idle = read_next_wake(settings.data)
    at = None if idle is None else idle.at
    if as_json:
        print_json({"wake_at": instant(at)})
    elif at is not None:
        say(at.strftime("%Y-%m-%d %H:%M:%S UTC"))


def _until(at: str, now: datetime) -> str:
    instant = datetime.fromisoformat(at)
    return "now" if instant - now < timedelta(seconds=1) else lasted(now, instant)


@click.command()
@click.argument("run_id", metavar="[RUN]", required=False)
@limit_option
@utc_option
@with_json
@with_settings
def approvals(settings: Settings, run_id: str | None, limit: int, as_json: bool) -> None:
    """List the approvals that wait for an answer: for whom, since when, until when.

    With RUN it also prints the link of the page that takes the answer. Whoever has a link can
    answer, so hand it on to nobody else. Links need a running service.

    \b
    turnout approvals
    turnout approvals 3f9a1c2b
    turnout approve 3f9a1c2b
    """
    rows = run_async(_open_approvals(settings, limit, run_id))
    if as_json:
        for row in rows:
            print_json(row)
    elif run_id is not None:
        for row in rows:
            _print_approval(row)
    else:
        ids = short_ids([row["run"] for row in rows], among=0)
        table(
            (
                Column("run"), Column("flow", 8), Column("asked", time=True),
                Column("until", time=True), Column("step", 10, optional=True),
                Column("approval", 10), Column("text", 8),
            ),
            (
                (
                    ids[row["run"]], row["flow"], row["asked_at"], row["until"], row["step"],
                    row["approval"], row["text"],
                )
                for row in rows
            ),
            empty="no approval waits for an answer",
        )  # fmt: skip


async def _open_approvals(
    settings: Settings, limit: int, run_id: str | None
) -> list[dict[str, Any]]:
    from turnout.service.operate.names import no_run
    from turnout.service.operate.upcoming import approval_of

    from .session import open_journal_reader, open_service, service_url

    async with open_journal_reader(settings) as reader:
        run = None if run_id is None else await reader.run(run_id)
        if run_id is not None and run is None:
            raise no_run(run_id)
        if await service_url(settings) is None:
            found = [approval_of(each, None) for each in await reader.open_approvals(limit)]
        else:
            async with open_service(settings) as client:
                asked = {"limit": str(min(limit, 1000))}
                found = list((await client.call("GET", "/api/approvals", params=asked))["items"])
    return [row for row in found if run is None or row["run"] == run.id]


def _print_approval(row: dict[str, Any]) -> None:
    heading(f"approval {row['approval']}")
    print_facts(
        ("run", row["run"]),
        ("flow", row["flow"]),
        ("step", row["step"]),
        ("asked", stamp(row["asked_at"])),
        ("until", stamp(row["until"])),
        ("text", row["text"]),
        ("link", row["link"] or "needs a running service"),
    )
    say(f"answer here: turnout approve {row['run']} --step {row['step']!r}")
