"""The author's code on the stack: which line calls turnout, for messages and warnings."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from types import FrameType

OWN_FOLDER = f"{Path(__file__).parents[2]}/"
"""The folder of turnout's own code; no flow file is loaded from in there."""

_FRAME = re.compile(r'^\s*File "(.+)", line (\d+)', re.MULTILINE)
_STANDARD_LIBRARY = f"{Path(os.__file__).parent}/"


def where() -> str:
    """Return `FILE:LINE` of the author's code that is calling turnout."""
    frame = calling_frame(sys._getframe(1))
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def calling_frame(frame: FrameType) -> FrameType:
    """Return the frame of the author's code that called the code of `frame`."""
    while frame.f_code.co_filename.startswith(OWN_FOLDER) and frame.f_back is not None:
        frame = frame.f_back
    return frame


def line_of_call() -> str | None:
    """Return `FILE:LINE` of the author's code, None if asyncio or a thread pool calls turnout."""
    frame = calling_frame(sys._getframe(1))
    file = frame.f_code.co_filename
    return None if is_own(file) or is_standard(file) else f"{file}:{frame.f_lineno}"


def is_own(file: str) -> bool:
    """Whether a file is turnout's own."""
    return file.startswith(OWN_FOLDER)


def is_standard(file: str) -> bool:
    """Whether a file is of Python's standard library."""
    return file.startswith(_STANDARD_LIBRARY) and "site-packages" not in file


def location_in(traceback: str | None) -> str | None:
    """Return `FILE:LINE` of the innermost line of the author's code in a traceback, if any."""
    locations = [
        f"{file}:{line}"
        for file, line in _FRAME.findall(traceback or "")
        if not (is_own(file) or is_standard(file) or "site-packages" in file or file[0] == "<")
    ]
    return locations[-1] if locations else None
