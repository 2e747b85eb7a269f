"""Error groups: which error decides when several were raised together, as by `asyncio.TaskGroup`.

In a group, also a nested one, `Fail` and other final errors take precedence over all other errors,
those over `Retry`, and `Retry` over `Skip`. Not here: the delay before a retry (`retry`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta

from .errors import FOREIGN, CodeChanged, InvalidData, MisplacedTask, NotAwaited, NotKept
from .run import Fail, Retry, Skip
from .units import parse_duration

FINAL = (Fail, InvalidData, NotKept, CodeChanged, MisplacedTask, NotAwaited)
"""Errors no retry would change."""

_SIGNALS = (Retry, Skip)
_NONE = timedelta(0)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors of a group, in order, or an error that is none itself."""
    left = [error]
    while left:
        at = left.pop()
        if isinstance(at, BaseExceptionGroup):
            left.extend(reversed(at.exceptions))
        else:
            yield at


def problems(error: BaseException) -> tuple[BaseException, ...]:
    """Return the errors of a group that are not a `Retry` or a `Skip`."""
    return tuple(each for each in leaves(error) if not isinstance(each, _SIGNALS))


def deciding(error: BaseException) -> BaseException:
    """Return the error that decides the outcome of the run; the group itself if several do.

    Of several `Retry` it is the one that asks for the longest wait.
    """
    if not isinstance(error, BaseExceptionGroup):
        return error
    found = tuple(leaves(error))
    final = next((each for each in found if isinstance(each, FINAL)), None)
    if final is not None:
        return final
    if problems(error):
        return error
    retries = [each for each in found if isinstance(each, Retry)]
    return max(retries, key=lambda each: asked_wait(each) or _NONE, default=found[0])


def is_final(error: BaseException) -> bool:
    """Whether an error allows neither a retry nor a fallback."""
    return isinstance(deciding(error), (*FINAL, Skip))


def asked_wait(error: Retry) -> timedelta | None:
    """Return how long a `Retry` asks to wait, None where it leaves that to the policy.

    A subclass may forget to call ours, or set what is no duration.
    """
    with suppress(*FOREIGN):  # it may also be a property of the author's
        return None if error.after is None else parse_duration(error.after)
    return None


def asked_pause(error: BaseException) -> str | None:
    """Return the dependency that an error asks to leave alone: that of its deciding `Retry`."""
    decides = deciding(error)
    with suppress(*FOREIGN):  # as in `asked_wait`
        pause = decides.pause if isinstance(decides, Retry) else None
        return pause if isinstance(pause, str) else None
    return None
