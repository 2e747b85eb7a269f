"""The author's code on the stack: which line calls turnout, for messages and warnings."""

from __future__ import annotations

import sys
from types import FrameType

from turnout.service.domain.tracebacks import OWN_FOLDER, innermost, is_own, is_standard


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


def location_in(traceback: str | None) -> str | None:
    """Return `FILE:LINE` of the innermost line of the author's code in a traceback, if any."""
    frame = innermost(traceback)
    return None if frame is None else f"{frame.file}:{frame.line}"
