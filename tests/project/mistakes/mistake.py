"""A mistake that a user makes, and the words in which turnout names its place and the fix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from textwrap import dedent

HERE = "# here"
"""Marks the line that a message has to name."""


@dataclass(frozen=True)
class InFile:
    """A mistake in a flow file, which `turnout check` finds.

    `says` is the whole message, at the line marked with `# here`; `fix` is the part of it that
    says what to do, empty where it does not. `beside` are other files of the folder, by name.
    """

    title: str
    text: str
    says: str
    fix: str
    warns: bool = False
    beside: Mapping[str, str] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """The flow file: the names of turnout, and the text."""
        return f"from turnout import *\n{dedent(self.text).lstrip()}"

    @property
    def place(self) -> tuple[str, int]:
        """The name of the file and the number of the marked line; the first where none is."""
        found = [
            (name, number)
            for name, text in {"flows.py": self.source, **self.beside}.items()
            for number, line in enumerate(text.splitlines(), 1)
            if HERE in line
        ]
        return found[0] if found else ("flows.py", 1)
