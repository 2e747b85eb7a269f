"""A glob over files below one folder: which names match, and which folders could hold matches.

The root is the literal folder in front of the first wildcard. Everything after it is matched name
by name, so that a walk can skip folders that cannot hold a match. As in shells, `*`, `?`, `[…]`
and `**` never match a leading dot. Names that programs give to unfinished files (`.part`, `.tmp`,
`~`, …) match only a pattern that ends in the same way.

Pure: nothing here touches a disk. Names are text with surrogate escapes, so every byte survives.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from pathlib import Path

from turnout.service.domain.errors import SetupError

PatternState = frozenset[int]
"""The state of matching a folder: the segments that its children may match."""

TEMPORARY = ("~", ".tmp", ".temp", ".part", ".partial", ".filepart", ".crdownload", ".swp")
"""Suffixes of files that somebody is still writing and will rename."""

_WILD = re.compile(r"[*?\[]")

_NOT_EXPANDED = (
    (re.compile(r"[A-Za-z][\w+.-]*://"), "it must be a path, not a URL"),
    (re.compile(r"~"), '"~" is not expanded; write the folder, or use Path.home() in an f-string'),
    (
        re.compile(r"\$|.*\$\{"),
        'variables are not expanded; use os.environ["NAME"] in an f-string',
    ),
    (re.compile(r".*(?<!\[)\\"), 'the separator is "/", and a literal "*" is written "[*]"'),
)
_NO_GLOB = (
    (
        re.compile(r".*(?<!\[)\{[^{}]*(,|\.\.)[^{}]*\}"),
        "braces are not expanded; give one trigger for each, as in on=[files(…), files(…)], or "
        'write "[{]" for the character',
    ),
    (re.compile(r".*\[\^"), 'a negated class is written "[!…]"'),
    (
        re.compile(r"(.*/)?\.{0,2}\Z"),
        'it ends in a folder; add a pattern for the files in it, such as "*"',
    ),
)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A folder and the names below it that match.

    `segments` are the parts of the pattern below `root`; `**` stands for any number of folders.
    """

    text: str
    root: str
    segments: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Pattern:
        """Read a pattern; a relative one starts at the working directory. Raises `SetupError`."""
        if not text.strip() or "\0" in text:
            raise SetupError('files("") names no files; write a pattern such as "inbox/*.csv"')
        if mistake := find_mistake(text) or _find(_NO_GLOB, text):
            raise SetupError(f'files("{text}"): {mistake}')
        parts = [part for part in text.split("/") if part not in ("", ".")]
        wild = next((n for n, part in enumerate(parts) if _WILD.search(part)), len(parts) - 1)
        literal, segments = parts[: max(wild, 0)], parts[max(wild, 0) :]
        if not segments or ".." in segments:
            raise SetupError(f'files("{text}"): ".." is allowed only before the first wildcard')
        for segment in segments:
            if "**" in segment and segment != "**":
                raise SetupError(
                    f'files("{text}"): "**" must stand alone between two "/", as in "inbox/**/*"'
                )
            if not _has_closed_classes(segment):
                raise SetupError(
                    f'files("{text}"): {segment!r} has a "[" that starts no class of '
                    'characters; a literal one is written "[[]"'
                )
        if segments[-1] == "**":
            segments.append("*")
        start = "/" if text.startswith("/") else str(Path.cwd())
        return cls(text, os.path.normpath(os.path.join(start, *literal)), tuple(segments))  # noqa: PTH118  Path keeps ".."

    @property
    def start(self) -> PatternState:
        """The state of the root."""
        return self._with_skips({0})

    def enter(self, state: PatternState, folder: str) -> PatternState:
        """Return the state of the child `folder`; empty if it can hold no match."""
        reached = set()
        for at in state:
            segment = self.segments[at]
            if segment == "**":
                if not folder.startswith("."):
                    reached.add(at)
            elif at + 1 < len(self.segments) and _takes(segment, folder):
                reached.add(at + 1)
        return self._with_skips(reached)

    def accepts(self, state: PatternState, name: str) -> bool:
        """Whether a file called `name` in a folder with `state` matches."""
        last = len(self.segments) - 1
        segment = self.segments[last]
        return last in state and _takes(segment, name) and not _is_temporary(segment, name)

    def matches(self, path: str) -> bool:
        """Whether the file `path`, relative to the root, matches."""
        folder, _, name = path.rpartition("/")
        return self.accepts(self.state_of(folder), name)

    def state_of(self, folder: str) -> PatternState:
        """Return the state of `folder`, relative to the root ("" is the root)."""
        state = self.start
        for part in folder.split("/") if folder else ():
            state = self.enter(state, part)
        return state

    def _with_skips(self, reached: set[int]) -> PatternState:
        """Add the segments that are reached when `**` stands for no folder at all."""
        for at in sorted(reached):
            while self.segments[at] == "**":
                at += 1
                reached.add(at)
        return frozenset(reached)


def find_mistake(path: str) -> str | None:
    """Return what the author expects to be expanded but is not; None if nothing."""
    if path != path.strip():
        return "it begins or ends with whitespace"
    return _find(_NOT_EXPANDED, path)


def _find(mistakes: Sequence[tuple[re.Pattern[str], str]], text: str) -> str | None:
    return next((reason for mistake, reason in mistakes if mistake.match(text)), None)


def _has_closed_classes(segment: str) -> bool:
    """Whether each `[` begins a class that some character can match."""
    at = segment.find("[")
    while at >= 0:
        begin = at + 2 if segment.startswith("!", at + 1) else at + 1
        end = segment.find("]", begin + 1)  # a "]" that comes first is one of the class
        if end < 0:
            return False
        at = segment.find("[", end)
    return "(?!)" not in translate(segment)  # such as [z-a]


def _takes(segment: str, name: str) -> bool:
    if name.startswith(".") and not segment.startswith("."):
        return False
    return _matcher(segment)(name) is not None


def _is_temporary(segment: str, name: str) -> bool:
    return any(name.endswith(end) and not segment.endswith(end) for end in TEMPORARY)


@lru_cache(maxsize=1024)
def _matcher(segment: str) -> Callable[[str], re.Match[str] | None]:
    return re.compile(translate(segment)).match
