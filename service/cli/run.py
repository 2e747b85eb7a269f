"""`turnout run`."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from .options import config_option, data_option, read_json, with_json
from .output import complain, print_json, say

if TYPE_CHECKING:
    from turnout.service.app.run_input import RunInput
    from turnout.service.domain.event import Event
    from turnout.service.domain.run import Run
    from turnout.service.settings import Settings


@click.command()
@click.argument("target", metavar="FILE.py:FLOW")
@click.option("--input", "input_text", metavar="JSON", help="Data, @FILE or -.  [{}]")
@click.option(
    "--file", "file", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="PATH",
    help="A file, as a trigger of files hands it over.",
)  # fmt: skip
@click.option(
    "--event", "event_file", type=click.File("rb"), metavar="FILE",
    help="A CloudEvent as JSON; - is standard input.",
)  # fmt: skip
@click.option("--from-run", metavar="RUN", help="The event and the recorded steps of this run.")
@click.option("--pdb", "debug", is_flag=True, help="Debug the error where it is raised.")
@click.option(
    "--dry-run", is_flag=True, help="Call only tasks that read, and print what would change."
)
@click.option("--skip-waits", is_flag=True, help="Sleeps and delays pass at once.")
@data_option
@config_option
@with_json
def run(
    target: str, input_text: str | None, file: Path | None, event_file: IO[bytes] | None,
    from_run: str | None, debug: bool, dry_run: bool, skip_waits: bool, data: Path | None,
    config: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Run one flow once, in the foreground.

    Prints the result. Uses a temporary journal; retries and steps work as under `turnout serve`.
    It says what the run waits for, and asks at a terminal for the answers to approvals; with
    --skip-waits an approval that asks for no fields is approved. Exits 1 if the run does not
    succeed.

    --from-run repeats a run of the journal in --data: its recorded steps are not run again, the
    failed one is, with its effects. The journal is only read.

    --dry-run does what reads: tasks with reads=True are called, and the first look of a poll. What
    other tasks, child runs, emit and budgets would do is printed instead, and waits pass at once.
    It ends where the flow goes on by what such a step would have returned.

    \b
    turnout run flows.py:bill --input '{"id": "7", "amount": 3}'
    turnout run flows.py:load --file inbox/orders.csv
    turnout run flows.py:bill --event event.json --skip-waits
    turnout run flows.py:bill --from-run 3f9a1c2b --pdb
    turnout run flows.py:bill --input @order.json --dry-run
    """
    from asyncio import CancelledError

    from turnout.service.settings import load

    from .foreground import prepare_process, run_on_uvloop
    from .person import Terminal, debugged

    path, _, flow_name = target.rpartition(":")
    if not path or not flow_name:
        raise click.UsageError(f"{target!r} is not FILE.py:FLOW, such as flows.py:bill")
    if sum(given is not None for given in (input_text, file, event_file, from_run)) > 1:
        raise click.UsageError("give one of --input, --file, --event and --from-run")
    if dry_run and (debug or from_run is not None):
        raise click.UsageError("--dry-run goes with neither --pdb nor --from-run")
    settings = load(config, data=data)
    given = _given(settings, flow_name, input_text, file, event_file, from_run)
    prepare_process(settings)
    from turnout.service.app import run_once
    from turnout.service.steps.dry_run import DryRun

    noted = DryRun() if dry_run else None
    work = run_once.run_once(
        settings, Path(path), flow_name, given, Terminal(),
        skip_waits=skip_waits, prepare=debugged if debug else None, dry_run=noted,
    )  # fmt: skip
    try:
        ended = run_on_uvloop(work)
    except CancelledError:
        raise KeyboardInterrupt from None
    if noted is None:
        _report_run(ended, as_json)
    else:
        from .dry_run import report_dry_run

        report_dry_run(noted, ended, as_json)


def _given(
    settings: Settings, flow: str, input_text: str | None, file: Path | None,
    event_file: IO[bytes] | None, from_run: str | None,
) -> Callable[[], Awaitable[RunInput]]:  # fmt: skip
    """Return what reads the event to run the flow with."""
    from turnout.service.app import run_input

    if from_run is not None:
        return lambda: _of_run(settings, from_run, flow)
    if file is not None:
        made = run_input.of_file(file)
    elif event_file is not None:
        made = run_input.RunInput(_read_event(event_file.read()))
    else:
        made = run_input.of_data(read_json("{}" if input_text is None else input_text))

    async def known() -> RunInput:
        return made

    return known


async def _of_run(settings: Settings, name: str, flow: str) -> RunInput:
    from turnout.service.app.run_input import of_run

    from .session import open_journal_reader

    async with open_journal_reader(settings) as reader:
        return await of_run(reader, name, flow)


def _read_event(body: bytes) -> Event:
    from turnout.service.domain.cloudevents import structured
    from turnout.service.domain.errors import InvalidData
    from turnout.service.domain.units import utc_now

    try:
        return structured(body, now=utc_now())
    except InvalidData as error:
        raise click.UsageError(f"--event: {error}") from None


def _report_run(run: Run, as_json: bool) -> None:
    from turnout.service.domain.run import RunState
    from turnout.service.operate.documents import encode

    from .tracebacks import folded

    if as_json:
        print_json(run.as_dict())
    elif run.state is RunState.SUCCEEDED:
        say(encode(run.as_dict()["result"]).decode("utf-8"))
    else:
        why = run.reason or ""
        if run.error is not None:
            why = f"{run.error.type}: {run.error.message}"
            if run.error.traceback:
                complain(folded(run.error.traceback))
        complain(f"{run.flow} {run.state}: {why}")
    if run.state is not RunState.SUCCEEDED and run.state is not RunState.SKIPPED:
        raise SystemExit(1)
