"""`turnout serve`."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from pathlib import Path

import click

from .options import config_option, data_option, flow_paths


@click.command()
@flow_paths
@click.option("--host", metavar="ADDRESS", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, metavar="PORT", help="Port; 0 picks one.  [default: 8080]")
@data_option
@config_option
@click.option(
    "--idle-exit",
    metavar="TIME",
    help="Exit after so long without work, such as 60s; under a socket unit only.",
)
@click.option("--reload", is_flag=True, help="Reload flow files when they change.")
def serve(
    paths: tuple[Path, ...], host: str | None, port: int | None, data: Path | None,
    config: Path | None, idle_exit: str | None, reload: bool,
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

    from .foreground import prepare_process, run_on_uvloop

    settings = load(config, data=data, host=host, port=port, idle_exit=idle_exit)
    prepare_process(settings)
    from turnout.service.app import serve

    files = [path.absolute() for path in paths]
    code = run_on_uvloop(serve.serve(settings, files, reload=reload))
    if code:
        raise SystemExit(code)
