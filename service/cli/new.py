"""`turnout new NAME`: a project that checks, serves and tests green as it is.

What it writes are the files of `handlers/templates`, and of `handlers/examples` those that are
asked for; all are checked and tested like other code. Nothing is ever overwritten: the folder is
made beside its place and moved there whole.
"""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

import getpass
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import click

from turnout.service.domain.errors import SetupError

from .output import complain, say

if TYPE_CHECKING:
    from .examples import Example

_NEEDS = "requirements.txt"
_ELSEWHERE = "elsewhere"
"""Where the code that other systems run goes; a name with `_` first is no flow file anyway."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_FIRST_CALL = (
    "curl -sS http://127.0.0.1:8080/hooks/orders -H 'Content-Type: application/json' "
    """-d '{"id": "7", "amount": 3}'"""
)


def _chosen(
    context: click.Context, option: click.Parameter, names: tuple[str, ...]
) -> tuple[Example, ...]:
    """Return the examples of these names, each once; lists all of them if a name is none."""
    from .examples import examples

    known = examples()
    wrong = [name for name in dict.fromkeys(names) if name not in known]
    if not wrong:
        return tuple(known[name] for name in dict.fromkeys(names))
    listed = "\n".join(_listed(known.values()))
    if wrong == [""]:
        say(listed)
        context.exit()
    complain(listed)
    raise click.BadParameter(f"{wrong[0]!r} is none of the examples above", context, option)


def _listed(all_of_them: Collection[Example]) -> Iterator[str]:
    folder, width = "", max(len(example.name) for example in all_of_them)
    for example in all_of_them:
        if example.folder != folder:
            folder = example.folder
            yield f"\n{folder}:"
        yield f"  {example.name:<{width}}  {example.does}"


@click.command()
@click.argument("name", type=click.Path(path_type=Path))
@click.option("--kafka", is_flag=True, help="Add a flow for the records of a topic.")
@click.option(
    "--example", "chosen", metavar="[EXAMPLE]", multiple=True, is_flag=False, flag_value="",
    is_eager=True, callback=_chosen,
    help="Add an example with its test; may be repeated. Without a name: list all examples.",
)  # fmt: skip
def new(name: Path, kafka: bool, chosen: tuple[Example, ...]) -> None:
    """Make a project: two flows, a test, settings, a systemd unit, a .gitignore.

    NAME is the folder to make. It asks nothing and overwrites nothing.

    \b
    turnout new orders
    turnout new orders --kafka --example approval
    turnout new --example
    """
    target = Path(os.path.normpath(Path.cwd() / name))
    if not _NAME.fullmatch(target.name):
        raise click.UsageError(
            f"{target.name!r} cannot name a project: use letters, digits, - and _, beginning with "
            "a letter, like order-flows"
        )
    _make(target, ["project", *(["kafka"] if kafka else [])], chosen)
    say(f"{target}: {', '.join(sorted(path.name for path in target.iterdir()))}\n")
    steps = [f"cd {name}", "turnout check .", "python -m unittest", "turnout serve .", _FIRST_CALL]
    if (target / _NEEDS).exists():
        steps.insert(1, f"python -m pip install --requirement {_NEEDS}")
    say("Next, the last line from a second terminal:\n  " + "\n  ".join(steps))


def _make(target: Path, parts: list[str], chosen: Iterable[Example]) -> None:
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
        _copy(chosen, whole)
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


def _copy(chosen: Iterable[Example], folder: Path) -> None:
    """Copy examples with their tests and folders, and write down which packages they need."""
    needs = sorted({need for example in chosen for need in example.needs})
    for example in chosen:
        for file in (example.file, example.test):
            (folder / file.name).write_text(file.read_text("utf-8"), "utf-8")
        for file in example.beside:
            place = folder if file.name.startswith("_") else folder / _ELSEWHERE
            place.mkdir(exist_ok=True)
            (place / file.name).write_text(file.read_text("utf-8"), "utf-8")
        for watched in example.watched:
            (folder / watched).mkdir(parents=True, exist_ok=True)
            (folder / watched / ".gitkeep").touch()  # git has no empty folders
    if needs:
        (folder / _NEEDS).write_text("\n".join(needs) + "\n", "utf-8")
