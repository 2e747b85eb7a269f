"""`turnout new NAME`: a project that checks, serves and tests green as it is.

What it writes are the files of `handlers/templates`, which are checked and tested like all other
code. Nothing is ever overwritten: the folder is made beside its place and moved there whole.
"""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

import getpass
import os
import re
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import click

from turnout.service.domain.errors import SetupError

from .output import say

EXAMPLES = ("approval", "polling", "report")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_FIRST_CALL = (
    "curl -sS http://127.0.0.1:8080/hooks/orders -H 'Content-Type: application/json' "
    """-d '{"id": "7", "amount": 3}'"""
)


@click.command()
@click.argument("name", type=click.Path(path_type=Path))
@click.option("--kafka", is_flag=True, help="Add a flow for the records of a topic.")
@click.option(
    "--example", "examples", type=click.Choice(EXAMPLES), multiple=True,
    help="Add an example with its test; may be repeated.",
)  # fmt: skip
def new(name: Path, kafka: bool, examples: tuple[str, ...]) -> None:
    """Make a project: two flows, a test, settings, a systemd unit, a .gitignore.

    NAME is the folder to make. It asks nothing and overwrites nothing.

    \b
    turnout new orders
    turnout new orders --kafka --example approval
    """
    target = Path(os.path.normpath(Path.cwd() / name))
    if not _NAME.fullmatch(target.name):
        raise click.UsageError(
            f"{target.name!r} cannot name a project: use letters, digits, - and _, beginning with "
            "a letter, like order-flows"
        )
    parts = ["project", *(["kafka"] if kafka else []), *dict.fromkeys(examples)]
    _make(target, parts)
    say(f"{target}: {', '.join(sorted(path.name for path in target.iterdir()))}\n")
    steps = [f"cd {name}", "turnout check .", "python -m unittest", "turnout serve .", _FIRST_CALL]
    say("Next, the last line from a second terminal:\n  " + "\n  ".join(steps))


def _make(target: Path, parts: list[str]) -> None:
    """Make the folder whole, or not at all; raises `SetupError`."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise SetupError(f"{target} exists already, and nothing is overwritten; take another name")
    made: str | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent)
        whole = Path(made) / target.name
        whole.mkdir()
        _write(whole, target, parts)
        whole.rename(target)  # refused if somebody has put something there meanwhile
    except OSError as error:
        raise SetupError(
            f"cannot make {target}: {error.strerror}; choose a folder you may write to"
        ) from None
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def _write(folder: Path, target: Path, parts: list[str]) -> None:
    filled = {
        "NAME": target.name,
        "FOLDER": str(target).replace("%", "%%"),
        "TURNOUT": str(Path(sys.executable).with_name("turnout")).replace("%", "%%"),
        "USER": getpass.getuser(),
    }
    renamed = {"gitignore": ".gitignore", "unit.service": f"{target.name}.service"}
    for part in parts:
        for template in sorted(
            files("turnout.handlers").joinpath("templates", part).iterdir(), key=str
        ):
            if not template.is_file():
                continue
            text = template.read_text("utf-8")
            if template.name == "unit.service":
                text = re.sub(r"@([A-Z]+)@", lambda found: filled[found[1]], text)
            with (folder / renamed.get(template.name, template.name)).open("a") as file:
                file.write(text)  # a second turnout.toml is more settings
