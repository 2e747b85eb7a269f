"""Markdown of docstrings for a terminal: text wrapped to its width, code as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from textwrap import fill, indent

EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A program in a docstring; nothing else is fenced."""


def paragraphs(text: str, width: int) -> Iterator[str]:
    """Yield the paragraphs of Markdown: text wrapped anew, code indented."""
    for number, part in enumerate(EXAMPLE.split(text)):
        if number % 2:
            yield indent(part.rstrip("\n"), "    ")
            continue
        for paragraph in filter(None, re.split(r"\n\s*\n", part.strip())):
            items = re.split(r"^(?=\* )", paragraph, flags=re.MULTILINE)
            yield "\n".join(
                fill(
                    " ".join(item.split()),
                    width,
                    subsequent_indent="  " * item.startswith("* "),
                    break_long_words=False,
                    break_on_hyphens=False,
                )
                for item in filter(None, items)
            )


def cut(line: str, width: int) -> str:
    """Return a line that fits, with the sign of an ellipsis where it was longer."""
    return line if len(line) <= width else line[: width - 1] + "…"
