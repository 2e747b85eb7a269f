"""The commands that load flow files or examine the machine: serve, check, run, doctor."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from turnout.service.domain.errors import SetupError

from .options import run_async, with_json, with_settings
from .output import complain, console, print_json, say, table
from .sending import read_json

if TYPE_CHECKING:
    from turnout.service.domain.run import Run
    from turnout.service.project.loader import Findings
    from turnout.service.settings import Settings

flow_paths = click.argument(
    "paths", nargs=-1, required=True, metavar="FLOWS...", type=click.Path(path_type=Path)
)


@click.command()
@flow_paths
@click.option("--host", metavar="ADDRESS", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, metavar="PORT", help="Port; 0 picks one.  [default: 8080]")
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Folder of the journal.  [TURNOUT_DATA; default: turnout-data]",
)  # fmt: skip
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Settings file.  [default: turnout.toml, if there is one]",
)  # fmt: skip
@click.option("--reload", is_flag=True, help="Reload flow files when they change.")
def serve(
    paths: tuple[Path, ...], host: str | None, port: int | None, data: Path | None,
    config: Path | None, reload: bool,
) -> None:  # fmt: skip
    """Accept events and run flows, until SIGTERM.

    FLOWS are files, or folders of *.py files without tests and names that begin with _. The
    first SIGTERM or Ctrl-C lets runs finish, the second stops at once; no accepted event is lost
    either way. SIGHUP reloads the flow files.

    \b
    turnout serve flows.py
    turnout serve flows/ --data /var/lib/turnout --port 9000
    turnout serve flows.py --reload          while you edit it
    """
    from turnout.service.settings import load

    settings = load(config, data=data, host=host, port=port)
    _prepare_process(settings)
    from turnout.service.app import serve

    files = [path.absolute() for path in paths]
    code = _run_on_uvloop(serve.serve(settings, files, reload=reload))
    if code:
        raise SystemExit(code)


def _prepare_process(settings: Settings) -> None:
    if sys.platform == "win32":
        raise SetupError("Windows is not supported; run turnout in WSL 2 or a container")
    from turnout.service.governance import secrets
    from turnout.service.telemetry import logs, streams

    streams.protect()
    logs.configure(settings.log_format, settings.log_level)
    secrets.configure(settings.secrets_folder)


def _run_on_uvloop(work: Any) -> Any:
    import asyncio

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


# ---------------------------------------------------------------- check


@click.command()
@flow_paths
@click.option("--env", is_flag=True, help="Report a secret without a value as an error.")
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Settings file.  [default: turnout.toml, if there is one]",
)  # fmt: skip
@with_json
def check(paths: tuple[Path, ...], env: bool, config: Path | None, as_json: bool) -> None:
    """Find mistakes in flow files before anything runs.

    Made for CI: prints one line per problem, `FILE:LINE: message`, and exits 1. Without problems
    it lists the flows and their triggers. Files are imported; flows are not run.

    \b
    turnout check flows/
    turnout check flows.py --env             on the machine that will serve it
    """
    from turnout.service.project import loader
    from turnout.service.settings import load
    from turnout.service.telemetry import streams

    settings = load(config)
    streams.protect()  # a file may reveal a secret as it is imported, and fail with it
    findings = loader.check(list(paths), env=env, secrets_folder=settings.secrets_folder)
    if as_json:
        _print_findings_json(findings)
    else:
        _print_findings(findings)
    if findings.problems:
        raise SystemExit(1)


def _print_findings(findings: Findings) -> None:
    for problem in findings.problems:
        say(_one_line(problem))
    for warning in findings.warnings:
        complain(f"warning: {_one_line(warning)}")
    if not findings.problems:
        table(
            ("flow", "triggers", "where"),
            (
                (
                    flow.name,
                    ", ".join(trigger.name for trigger in flow.triggers) or "(none)",
                    f"{flow.file}:{flow.line}",
                )
                for flow in findings.flows
            ),
            empty="",
        )


def _print_findings_json(findings: Findings) -> None:
    from turnout.service.operate.documents import flow_of

    levels = (("error", findings.problems), ("warning", findings.warnings))
    for level, problems in levels:
        for problem in problems:
            print_json(
                {"level": level, "file": problem.file, "line": problem.line,
                 "message": problem.message}
            )  # fmt: skip
    if not findings.problems:
        for flow in findings.flows:
            print_json(flow_of(flow))


def _one_line(problem: SetupError) -> str:
    return " ".join(str(problem).split())


# ---------------------------------------------------------------- run


@click.command()
@click.argument("target", metavar="FILE.py:FLOW")
@click.option("--input", "input_text", default="{}", metavar="JSON", help="Data, @FILE or -.")
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Settings file.  [default: turnout.toml, if there is one]",
)  # fmt: skip
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

    file, _, flow_name = target.rpartition(":")
    if not file or not flow_name:
        raise click.UsageError(f"{target!r} is not FILE.py:FLOW, such as flows.py:bill")
    data = read_json(input_text)
    settings = load(config)
    _prepare_process(settings)
    from turnout.service.app import serve

    try:
        ended = _run_on_uvloop(serve.run_once(settings, Path(file), flow_name, data))
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


# ---------------------------------------------------------------- doctor


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
    if run_async(_examine(settings, as_json=as_json)):
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
            with console(stderr=True).status("examining the journal"):
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
