"""`turnout check`."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from turnout.service.domain.errors import SetupError

from .options import flow_paths, with_json
from .output import complain, print_json, say, working
from .tables import Column, table

if TYPE_CHECKING:
    from turnout.service.project.check import Findings


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
    from turnout.service.project.check import check as examine
    from turnout.service.settings import load
    from turnout.service.telemetry import streams

    settings = load(config)
    streams.protect()  # a file may reveal a secret as it is imported, and fail with it
    with working("importing the flow files"):
        findings = examine(list(paths), env=env, secrets_folder=settings.secrets_folder)
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
            (Column("flow", 8), Column("triggers", 12), Column("where", 20)),
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
