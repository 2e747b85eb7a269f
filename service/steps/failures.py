"""Errors of runs and steps: described for people, and stored so that they can be raised again.

An error that escapes a step carries the step's key, so `step_of` finds the step later, even if the
flow wrapped the error. Not here: what an error means for a step (`step`) or a run (`executor`).
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from itertools import dropwhile

from turnout.service.domain.error_groups import deciding, problems
from turnout.service.domain.errors import (
    FOREIGN,
    CodeChanged,
    InvalidData,
    NotAwaited,
    NotKept,
    StepFailed,
    message_of,
)
from turnout.service.domain.portable import kind_of, portable
from turnout.service.domain.run import Fail, Rejected, RunError
from turnout.service.domain.tracebacks import is_own, is_standard
from turnout.service.domain.unpickle import unpickle
from turnout.service.governance import secrets
from turnout.service.journal.records import StepRecord

_MAX_MESSAGE = 4096
_MAX_TRACEBACK = 32_768
_STEP = "__turnout_step__"

NAMES: Mapping[type[BaseException], str] = {
    Fail: "failed",
    InvalidData: "invalid_data",
    CodeChanged: "code_changed",
    NotKept: "not_kept",
    NotAwaited: "not_awaited",
    Rejected: "rejected",
}
"""The names of turnout's own error types in records; others go by their class's name."""


def set_step(error: BaseException, key: str) -> BaseException:
    """Set on an error the step it escaped from; returns the error."""
    BaseException.__setattr__(error, _STEP, key)  # past a frozen dataclass's own refusal
    return error


def step_of(error: BaseException) -> str | None:
    """Return the key of the step an error escaped from, also when the flow wrapped it."""
    steps = (getattr(each, _STEP, None) for each in chain(error))
    return next((step for step in steps if isinstance(step, str)), None)


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, its members, causes and contexts, each once."""
    seen: set[int] = set()
    left = [error]
    while left:
        at = left.pop()
        if id(at) in seen:
            continue
        seen.add(id(at))
        yield at
        below = at.__cause__ or at.__context__
        if below is not None:
            left.append(below)
        if isinstance(at, BaseExceptionGroup):
            left.extend(reversed(at.exceptions))


def _report(error: BaseException) -> str:
    """Return the traceback as the author would write it: without turnout's own frames."""
    report = traceback.TracebackException.from_exception(error)
    at: traceback.TracebackException | None = report
    while at is not None:
        frames = dropwhile(_is_on_the_way, at.stack)
        authors = [frame for frame in frames if not is_own(frame.filename)]
        if authors:
            at.stack = traceback.StackSummary.from_list(authors)
        at = at.__cause__ or at.__context__
    return "".join(report.format())


def _is_on_the_way(frame: traceback.FrameSummary) -> bool:
    """Whether a frame leads to the author's code: ours, or the standard library's in between."""
    return is_own(frame.filename) or is_standard(frame.filename)


def describe(error: BaseException) -> RunError:
    """Write down an error: type, message, the step it escaped from, traceback; secrets masked."""
    text = _report(error)
    decides = deciding(error)
    message = message_of(decides)
    if isinstance(decides, BaseExceptionGroup):
        first = problems(decides)[0]
        message += f": {type(first).__name__}: {message_of(first)}"
    return RunError(
        _type_of(decides),
        secrets.mask(message)[:_MAX_MESSAGE],
        step_of(error),
        secrets.mask(text)[-_MAX_TRACEBACK:],
    )


def _type_of(error: BaseException) -> str:
    if isinstance(error, StepFailed) and error.type:
        return error.type
    return NAMES.get(kind_of(error)) or secrets.mask(type(error).__name__)


def pack(error: Exception, max_bytes: int) -> tuple[bytes | None, Exception]:
    """Return the stored form of an error, and the error to raise in the flow.

    It is the same error if it can be stored whole. Otherwise it is the one that later attempts will
    raise, so that all attempts take the same branch; the log describes the original.
    """
    kept = portable(error)
    if kept is not None and _may_not_be(kept.data, max_bytes):
        kept = portable(error, mask=_masked)
    if kept is not None and _may_not_be(kept.data, max_bytes):
        kept = None
    if kept is None:
        failed = StepFailed(_masked(message_of(error)), type=_type_of(error))
        return None, failed.with_traceback(error.__traceback__)
    if kept.is_whole:
        return kept.data, error
    restored: Exception = unpickle(kept.data)
    return kept.data, restored.with_traceback(error.__traceback__)


def _may_not_be(data: bytes, max_bytes: int) -> bool:
    return len(data) > max_bytes or secrets.find_live(data) is not None


def _masked(text: str) -> str:
    return secrets.mask(text)[:_MAX_MESSAGE]


def restore(known: StepRecord) -> BaseException:
    """Return the recorded error of a step, or a `StepFailed` that names its type.

    The error carries its step (`step_of`).
    """
    error = None
    if known.result is not None:
        try:
            error = unpickle(known.result)
        except FOREIGN:  # its class may be gone from the code
            error = None
    if not isinstance(error, BaseException):
        recorded = known.error or RunError("Exception", "the step failed")
        error = StepFailed(recorded.message, type=recorded.type)
    step = None if known.error is None else known.error.step
    return set_step(error, step or known.key)
