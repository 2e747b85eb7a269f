"""`turnout logs`: what runs have logged, and what they log now."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from .options import run_async, with_json, with_settings
from .output import print_json, say
from .tables import short_ids
from .times import utc_option

if TYPE_CHECKING:
    from turnout.service.client import Client
    from turnout.service.domain.run import Run
    from turnout.service.journal.contract import Reads
    from turnout.service.settings import Settings

_RUNS = 50
"""The newest runs of a flow that are looked at."""
_PAUSE_SECONDS = 0.5


@click.command()
@click.argument("run_id", metavar="[RUN]", required=False)
@click.option("--flow", metavar="FLOW", help="The newest runs of this flow.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what they log from now on.")
@click.option(
    "--lines", type=click.IntRange(0), default=None, metavar="N",
    help="The last N lines to begin with.  [all of a run, 100 of several]",
)  # fmt: skip
@utc_option
@with_json
@with_settings
def logs(
    settings: Settings, run_id: str | None, flow: str | None, follow: bool, lines: int | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Print the log of a run, of the newest runs of a flow, or of the newest runs of all flows.

    The last 200 lines (64 KiB) of each attempt are kept. A running service adds the lines of
    attempts that are under way. --follow ends with the run; of several runs it goes on until
    Ctrl-C.

    \b
    turnout logs 3f9a1c2b
    turnout logs 3f9a1c2b --follow
    turnout logs --flow bill --follow --lines 10
    """
    if run_id is not None and flow is not None:
        raise click.UsageError("name a RUN or --flow, not both")
    if lines is None:
        lines = 1_000_000 if run_id is not None else 100
    reading = _Reading(settings, run_id, flow, as_json=as_json)
    run_async(_print(reading, follow=follow, lines=lines), prints=True)


@dataclass
class _Reading:
    """What is printed, and what was printed already: lines of a run are known by their instant."""

    settings: Settings
    run_id: str | None
    flow: str | None
    as_json: bool
    printed: dict[str, tuple[str, list[Any]]] = field(default_factory=dict)
    over: set[str] = field(default_factory=set)
    client: Client | None = None
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def fresh(self, reader: Reads) -> tuple[list[dict[str, Any]], bool]:
        """Return the lines that were not printed yet, and whether all runs have ended."""
        runs = await self._runs(reader)
        live = await self._live()
        found: list[dict[str, Any]] = []
        for run in runs:
            if run.id not in self.over:
                stored = [line async for line in _stored(reader, run)]
                found += self._unprinted(run.id, stored)
        for run_id in dict.fromkeys(line["run"] for line in live):
            found += self._unprinted(run_id, [line for line in live if line["run"] == run_id])
        self.over |= {run.id for run in runs if run.finished_at is not None}
        found.sort(key=lambda line: str(line.get("at", "")))
        return found, all(run.finished_at is not None for run in runs)

    async def _runs(self, reader: Reads) -> list[Run]:
        from turnout.service.journal.records import Filter
        from turnout.service.operate.names import no_run

        if self.run_id is None:
            return await reader.runs(Filter(flow=self.flow, limit=_RUNS))
        run = await reader.run(self.run_id)
        if run is None:
            raise no_run(self.run_id)
        return [run]

    async def _live(self) -> list[dict[str, Any]]:
        """Return the lines of attempts under way; none without a service."""
        from turnout.service.domain.errors import TurnoutError

        from .session import open_service

        asked = {"run": self.run_id, "flow": self.flow}
        params = {name: value for name, value in asked.items() if value}
        try:
            if self.client is None:
                self.client = await self.stack.enter_async_context(open_service(self.settings))
            return list((await self.client.call("GET", "/api/logs", params=params))["items"])
        except TurnoutError:  # it has ended: the next one is another client's
            self.client = None
            return []

    def _unprinted(self, run_id: str, lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the lines behind those that were returned before."""
        last, same = self.printed.get(run_id, ("", []))
        fresh = []
        for line in lines:
            at = str(line.get("at", last))
            if at < last or (at == last and line in same):
                continue
            same = [*same, line] if at == last else [line]
            last = at
            fresh.append(line)
        self.printed[run_id] = (last, same)
        return fresh

    def print(self, lines: Iterable[dict[str, Any]]) -> None:
        """Print lines; those of several runs each with its run."""
        from .show_run import log_line

        for line in lines:
            if self.as_json:
                print_json(line)
                continue
            shown = {name: line[name] for name in line if name not in ("run", "flow", "attempt")}
            name = short_ids([line["run"]], among=0)[line["run"]]
            whose = f"{name} {line['flow']}  " if self.run_id is None else ""
            say(f"{whose}{log_line(shown)}")


async def _print(reading: _Reading, *, follow: bool, lines: int) -> None:
    from asyncio import sleep

    from .session import open_journal_reader

    async with reading.stack, open_journal_reader(reading.settings) as reader:
        first, ended = await reading.fresh(reader)
        if not first and not follow:
            say("nothing was logged")
        reading.print(first[len(first) - min(lines, len(first)) :])
        while follow and not (ended and reading.run_id is not None):
            await sleep(_PAUSE_SECONDS)
            more, ended = await reading.fresh(reader)
            reading.print(more)


async def _stored(reader: Reads, run: Run) -> Any:
    from turnout.service.domain.payload import read_json

    for attempt in await reader.attempts(run.seq):
        for line in (attempt.log or b"").splitlines():
            with suppress(ValueError):
                record = read_json(line)
                yield {"run": run.id, "flow": run.flow, "attempt": attempt.attempt, **record}
