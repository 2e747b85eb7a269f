"""Runs, steps and errors in words, for people."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .output import short

_UNDO = re.compile(r"~undo\[(\d+)\]/(.+)")
_FRAME = re.compile(r'^\s*File "(.+)", line (\d+)', re.MULTILINE)
_NOT_THEIRS = re.compile(
    r"/turnout/(?:service|triggers|handlers)/|/(?:site|dist)-packages/|/lib/python3\.\d+/|^<"
)

_MARKS = {"~failed": "(failed from here on)", "state#0": "(state between runs, as read)"}


def step_name(key: str) -> str:
    """Return the key of a step as people read it: `charge#1`, `undo 1: refund`."""
    undone = _UNDO.fullmatch(key)
    if undone is not None:
        return f"undo {int(undone[1]) + 1}: {undone[2].removesuffix('#1')}"
    if key.startswith("~on_failure/"):
        return f"on_failure: {key.partition('/')[2].removesuffix('#1')}"
    return _MARKS.get(key, key)


def step_state(step: dict[str, Any], *, is_over: bool) -> str:
    """Return the state of a step in words; `is_over` says that its run has ended."""
    kind = (step.get("error") or {}).get("type")
    if step["state"] == "skipped" or kind in ("skipped", "cut_off"):
        return "skipped (upstream failed)"
    if step["superseded"] and not is_over:
        return "runs again"
    return str(step["state"])


def undo_words(undo: str | None, failed: Sequence[str]) -> str:
    """Return the state of a run's undo and the steps that are not undone."""
    names = ", ".join(step_name(key).partition(": ")[2] or key for key in failed)
    at = f" at {names}" if failed and undo == "failed" else ""
    return "" if undo is None else f"{undo}{at}"


def error_line(error: dict[str, Any] | None, *, limit: int = 200) -> str:
    """Return an error as one line: type, message and step."""
    if error is None:
        return ""
    where = f" (in step {step_name(error['step'])})" if error["step"] else ""
    return short(f"{error['type']}: {error['message']}", limit) + where


def location_of(traceback: str | None) -> str:
    """Return the last line of an author's own code in a traceback: `/srv/flows.py:17`."""
    frames = _FRAME.findall(traceback or "")
    own = [f"{file}:{line}" for file, line in frames if not _NOT_THEIRS.search(file)]
    return own[-1] if own else ""
