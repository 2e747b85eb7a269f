"""The author's code in a traceback that was written down."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

OWN_FOLDER = f"{Path(__file__).parents[2]}/"
"""The folder of turnout's own code; no flow file is loaded from in there."""

_FRAME = re.compile(r'^\s*File "(.+)", line (\d+)(?:, in (.+))?$', re.MULTILINE)
_STANDARD_LIBRARY = f"{Path(os.__file__).parent}/"


class Frame(NamedTuple):
    """A line of a traceback: where it is, and the function it is in, empty if not known."""

    file: str
    line: int
    function: str


def innermost(traceback: str | None) -> Frame | None:
    """Return the innermost line of the author's code in a traceback, None if there is none."""
    for file, line, function in reversed(_FRAME.findall(traceback or "")):
        if not (is_own(file) or is_standard(file) or "site-packages" in file or file[0] == "<"):
            return Frame(file, int(line), function)
    return None


def is_own(file: str) -> bool:
    """Whether a file is turnout's own."""
    return file.startswith(OWN_FOLDER)


def is_standard(file: str) -> bool:
    """Whether a file is of Python's standard library."""
    return file.startswith(_STANDARD_LIBRARY) and "site-packages" not in file
