"""`turnout run`."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import config_option, read_json, with_json
from .output import complain, print_json, say

if TYPE_CHECKING:
    from turnout.service.domain.run import Run


@click.command()
@click.argument("target", metavar="FILE.py:FLOW")
@click.option("--input", "input_text", default="{}", metavar="JSON", help="Data, @FILE or -.")
@config_option
@with_json
def run(target: str, input_text: str, config: Path | None, as_json: bool) -> None:
    """Run one flow once, in the foreground.

    Prints the result. Uses a temporary journal; retries and steps work as under `turnout serve`.
    Exits 1 if the run does not succeed.

    \b
    turnout run flows.py:bill --input '{"id": "7", "amount": 3}'
    turnout run flows.py:bill --input @order.json
    """
    from asyncio import CancelledError

    from turnout.service.settings import load

    from .foreground import prepare_process, run_on_uvloop

    file, _, flow_name = target.rpartition(":")
    if not file or not flow_name:
        raise click.UsageError(f"{target!r} is not FILE.py:FLOW, such as flows.py:bill")
    data = read_json(input_text)
    settings = load(config)
    prepare_process(settings)
    from turnout.service.app import run_once

    try:
        ended = run_on_uvloop(run_once.run_once(settings, Path(file), flow_name, data))
    except CancelledError:
        raise KeyboardInterrupt from None
    _report_run(ended, as_json)


def _report_run(run: Run, as_json: bool) -> None:
    from turnout.service.domain.run import RunState
    from turnout.service.operate.documents import encode

    if as_json:
        print_json(run.as_dict())
    elif run.state is RunState.SUCCEEDED:
        say(encode(run.as_dict()["result"]).decode("utf-8"))
    else:
        why = run.reason or ""
        if run.error is not None:
            why = f"{run.error.type}: {run.error.message}"
            if run.error.traceback:
                complain(run.error.traceback.rstrip())
        complain(f"{run.flow} {run.state}: {why}")
    if run.state is not RunState.SUCCEEDED and run.state is not RunState.SKIPPED:
        raise SystemExit(1)
