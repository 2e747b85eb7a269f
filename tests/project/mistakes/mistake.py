"""A mistake that a user makes, and the words in which turnout names its place and the fix."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import dedent

HERE = "# here"
"""Marks the line that a message has to name."""


@dataclass(frozen=True)
class InFile:
    """A mistake in a flow file, which `turnout check` finds.

    `says` is the whole message, at the line marked with `# here`; `fix` is the part of it that
    says what to do, empty where it does not.
    """

    title: str
    text: str
    says: str
    fix: str
    warns: bool = False

    @property
    def source(self) -> str:
        """The flow file: the names of turnout, and the text."""
        return f"from turnout import *\n{dedent(self.text).lstrip()}"

    @property
    def line(self) -> int:
        """The number of the marked line."""
        marked = [n for n, line in enumerate(self.source.splitlines(), 1) if HERE in line]
        assert len(marked) == 1, self.title
        return marked[0]
