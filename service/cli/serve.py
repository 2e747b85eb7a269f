"""`turnout serve`."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .foreground import prepare_process, run_on_uvloop
from .options import flow_paths

if TYPE_CHECKING:
    pass


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
    prepare_process(settings)
    from turnout.service.app import serve

    files = [path.absolute() for path in paths]
    code = run_on_uvloop(serve.serve(settings, files, reload=reload))
    if code:
        raise SystemExit(code)
