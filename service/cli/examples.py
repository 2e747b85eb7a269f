"""The examples that `turnout new --example` copies: what each does, its files, and what it needs.

An example is a file of `handlers/examples` with a flow in it. Everything about it is read from the
files: what it does is how its docstring begins, what it needs is its block of script metadata
(https://packaging.python.org/specifications/inline-script-metadata), its test is `test_NAME.py` in
`tests`. A file that its docstring names, such as the code of a worker, goes with it, into a folder
from which no flows are served; one whose name begins with `_` stays beside it. A folder whose
files start a flow is made with it.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

_FLOW = re.compile(r"^@flow\b", re.MULTILINE)
_METADATA = re.compile(r"^# /// script\n((?:#(?: .*)?\n)+?)# ///$", re.MULTILINE)
_WATCHED = re.compile(r"""\bfiles\("([^/"*?\[][^"*?\[]*)/""")
_NAMED = re.compile(r"`([\w-]+\.\w+)`")


@dataclass(frozen=True, slots=True)
class Example:
    """One example; `folder` is "" for those that lie directly in `handlers/examples`.

    `beside` is what runs elsewhere and is not turnout's, `needs` the packages beside turnout,
    `watched` the folders whose files start it.
    """

    name: str
    folder: str
    does: str
    file: Traversable
    beside: tuple[Traversable, ...]
    needs: tuple[str, ...]
    watched: tuple[str, ...]
    test: Traversable


def root() -> Traversable:
    """Return the folder of the examples."""
    return files("turnout.handlers").joinpath("examples")


def examples() -> dict[str, Example]:
    """Return every example by its name: those of the folder itself first, then folder by folder."""
    tests = root().joinpath("tests")
    return {example.name: example for example in _examples(tests)}


def _examples(tests: Traversable) -> Iterator[Example]:
    inside = sorted(root().iterdir(), key=lambda each: each.name)
    folders = [each for each in inside if each.is_dir() and each.name != "tests"]
    for folder in [root(), *folders]:
        place = "" if folder.name == root().name else folder.name
        for file in sorted(folder.iterdir(), key=lambda each: each.name):
            if file.name.endswith(".py") and _FLOW.search(text := file.read_text("utf-8")):
                yield _example(file, text, folder, place, tests)


def _example(
    file: Traversable, text: str, folder: Traversable, place: str, tests: Traversable
) -> Example:
    docstring = ast.get_docstring(ast.parse(text)) or ""
    named = [folder.joinpath(name) for name in dict.fromkeys(_NAMED.findall(docstring))]
    return Example(
        name=file.name.removesuffix(".py"),
        folder=place,
        does=" ".join(docstring.partition("\n\n")[0].split()).removesuffix("."),
        file=file,
        beside=tuple(each for each in named if each.is_file() and each.name != file.name),
        needs=tuple(needed(text)),
        watched=tuple(_WATCHED.findall(text)),
        test=tests.joinpath(f"test_{file.name}"),
    )


def needed(text: str) -> list[str]:
    """Return the packages, beside turnout, that the script metadata of a file asks for."""
    found = _METADATA.search(text)
    if found is None:
        return []
    lines = (line.removeprefix("#").removeprefix(" ") for line in found[1].splitlines())
    asked: list[str] = tomllib.loads("\n".join(lines)).get("dependencies", [])
    return asked
