"""`turnout help NAME`: the reference of what flow files import."""

from __future__ import annotations

import shutil
from importlib import import_module
from typing import Any

import click

from .output import say

_LONGEST_LINE = 100


@click.command(name="help")
@click.argument("name", required=False)
@click.pass_context
def help_(context: click.Context, name: str | None) -> None:
    r"""Print the reference of a name that flow files import, or list all names.

    \b
    turnout help                 what can be imported, a line each
    turnout help webhook         its promise, options with defaults, errors, an example
    turnout help current.key     what is reached through a name
    turnout help serve           also a command: turnout serve --help
    """
    # By name: the reference reads what stands above this package.
    reference: Any = import_module("turnout._reference")
    width = min(shutil.get_terminal_size((_LONGEST_LINE, 24)).columns, _LONGEST_LINE)
    if name is None:
        for module, lines in reference.overview(width):
            click.echo(click.style(f"from {module} import …", bold=True))
            say(lines)
        say("`turnout help NAME` prints the whole entry of a name.")
        return
    root = context.find_root().command
    assert isinstance(root, click.Group)
    command = root.get_command(context, name)
    found = reference.find(name)
    if found is not None:
        say(found.plain(width))
    elif command is not None:
        click.echo(command.get_help(click.Context(command, context.find_root(), name)))
        return
    else:
        commands = root.list_commands(context)
        raise click.UsageError(reference.unknown(name, commands))
    if command is not None:
        say(f"There is a command of this name, too: turnout {name} --help")
