"""Tracebacks for people: an author's own frames, and what libraries did in between as one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_FRAME = re.compile(r'  File "(?P<file>[^"]+)", line \d+, in ')
_PACKAGE = re.compile(r"/(?:site|dist)-packages/(?P<name>[^/.]+)")
_OWN_OF_PYTHON = re.compile(r"/lib/python3\.\d+/|^<frozen ")


def folded(traceback: str) -> str:
    """Return a traceback in which frames of libraries that follow each other are one line.

    `turnout show RUN --json` has the whole one.
    """
    lines: list[str] = []
    libraries: list[str] = []
    for frame in _frames(traceback.rstrip().splitlines()):
        library = _library(frame[0])
        if library is None:
            lines += [*_told(libraries), *frame]
            libraries = []
        else:
            libraries.append(library)
    return "\n".join([*lines, *_told(libraries)])


def _frames(lines: Sequence[str]) -> Iterator[list[str]]:
    """Yield each frame with the lines of its code, and every other line alone."""
    frame: list[str] = []
    for line in lines:
        if frame and line.startswith("    "):
            frame.append(line)
            continue
        if frame:
            yield frame
        frame = [line] if _FRAME.match(line) else []
        if not frame:
            yield [line]
    if frame:
        yield frame


def _library(line: str) -> str | None:
    """Return the library that a frame is of; None for an author's own and for other lines."""
    found = _FRAME.match(line)
    if found is None:
        return None
    package = _PACKAGE.search(found["file"])
    if package is not None:
        return package["name"]
    return "Python" if _OWN_OF_PYTHON.search(found["file"]) else None


def _told(libraries: Sequence[str]) -> list[str]:
    if not libraries:
        return []
    count = len(libraries)
    return [f"  … {count} frame{'s' * (count != 1)} of {', '.join(dict.fromkeys(libraries))}"]
