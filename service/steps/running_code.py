"""Whose code a thread is running: the run and the author's line, for what blocks the event loop."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from turnout.service.domain.tracebacks import is_own, is_standard

from .branches import Branches
from .context import RunContext
from .scope import Scope
from .step import StepCall

_SHOWN = 120


@dataclass(frozen=True, slots=True)
class RunningCode:
    """The code that is running; `flow` and `run` are None outside a run, `location` in turnout."""

    flow: str | None
    run: str | None
    location: str | None
    text: str

    @property
    def words(self) -> str:
        """Who runs where, for a message."""
        who = "code outside any run" if self.flow is None else f"flow {self.flow!r}"
        return who if self.location is None else f"{who}, at {self.location} ({self.text}),"


def running_code(frame: FrameType) -> RunningCode:
    """Return whose code the innermost of these frames belongs to."""
    frames = list(_outwards(frame))
    context = next(filter(None, map(_context_of, frames)), None)
    run = None if context is None else context.claimed
    for each in frames:
        file = each.f_code.co_filename
        if not (is_own(file) or is_standard(file) or "site-packages" in file or file[:1] == "<"):
            text = linecache.getline(file, each.f_lineno).strip()[:_SHOWN]
            location = f"{file}:{each.f_lineno}"
            break
    else:
        location, text = None, ""
    if run is None:
        return RunningCode(None, None, location, text)
    return RunningCode(run.flow, run.claim.run_id, location, text)


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _context_of(frame: FrameType) -> RunContext | None:
    """Return the attempt that one of turnout's own frames works for."""
    if not is_own(frame.f_code.co_filename):
        return None
    for value in frame.f_locals.values():
        if isinstance(value, RunContext):
            return value
        if isinstance(value, StepCall | Scope | Branches):
            return value.context
    return None
