"""Every error turnout raises by name.

A class exists here only because somebody catches it. Messages name the file, the thing and the
fix; they never hold a secret's value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class TurnoutError(Exception):
    """The root of all errors turnout raises on purpose."""


class SetupError(TurnoutError):
    """Raised at load when a flow file, a setting or the machine makes starting unsafe.

    `file` and `line` point at what to change when that is known; `str()` is one line,
    `FILE:LINE: message`.
    """

    def __init__(self, message: str, *, file: str | None = None, line: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.file = file
        self.line = line

    def __str__(self) -> str:
        if self.file is None:
            return self.message
        return f"{self.file}:{self.line or 1}: {self.message}"


class JournalError(TurnoutError):
    """Raised when the journal cannot keep a promise; nothing of the refused write is stored."""


class PositionsMoved(JournalError):
    """Raised when a trigger's position is not what its mover last knew; nothing is stored.

    Somebody else has moved it: read the positions again, and go on from there.
    """

    def __init__(
        self, trigger: str, partition: str, expected: str | None, found: str | None
    ) -> None:
        super().__init__(
            f"position {partition!r} of trigger {trigger!r} has moved: "
            f"it is {_quoted(found)}, where {_quoted(expected)} was expected"
        )
        self.trigger = trigger
        self.partition = partition
        self.expected = expected
        self.found = found


class StateMoved(JournalError):
    """Raised when what a flow keeps between runs is not what a run has read; nothing is stored."""

    def __init__(self, flow: str, key: str) -> None:
        at = f" under key {key!r}" if key else ""
        super().__init__(f"another run of flow {flow!r} has changed its state{at} meanwhile")
        self.flow = flow
        self.key = key


def _quoted(position: str | None) -> str:
    return "not stored" if position is None else repr(position)


class JournalFull(JournalError):
    """Raised when the disk is full; writing works again once there is space."""


class JournalBroken(JournalError):
    """Raised when an fsync or a read fails for good; the process must end (exit 74) and restart.

    After a failed fsync the kernel may have dropped the pages it could not write, so a retry on
    the same handle proves nothing (PostgreSQL's fsync finding of 2018).
    """


class BackupError(TurnoutError):
    """Raised when a backup cannot be made or restored now, or a file is no whole backup."""


class ClaimLost(TurnoutError):
    """Raised when a write carries a claim token that is no longer the run's own."""


class Overloaded(TurnoutError):
    """Raised when a bound is reached: too many unfinished runs, too little disk, too many waiters.

    Nothing was stored. A webhook answers it with 503 (429 for `max_queued=`) and `Retry-After`; a
    flow meets it at `emit`, a trigger of its own at `await emit(…)`.

    * `message`: which bound
    * `retry_after_seconds`: when to try again

    Raises nothing by itself; not caught, the attempt is retried as the policy says.

    ```python
    from turnout import Overloaded, Retry, emit, event, flow


    @flow(on=event("import.started"), retry=10)
    async def import_orders(orders: list[str]) -> int:
        try:
            for order in orders:
                await emit("order.placed", {"id": order}, id=f"import-{order}")
        except Overloaded as full:
            raise Retry("the queue is full", after=f"{full.retry_after_seconds}s") from full
        return len(orders)
    ```
    """

    def __init__(self, message: str, *, retry_after_seconds: int = 5) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class TooManyRuns(Overloaded):
    """Raised when as many runs are unfinished as may be; `QueueFull` when it is those of a flow."""


class QueueFull(TooManyRuns):
    """Raised when the queue of a flow that a delivery starts is full (`max_queued=`)."""


class Paused(Overloaded):
    """Raised for an event of a trigger that an operator has paused; nothing was stored."""


class InvalidData(TurnoutError):
    """Raised when an event's data cannot be what a flow declared; `field` is its path.

    Never retried: the same bytes would fail the same way.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class RefusedByFlows(InvalidData):
    """Raised when every flow refuses an event's data; `refusals` says why, by flow."""

    def __init__(self, message: str, refusals: Mapping[str, str]) -> None:
        super().__init__(message)
        self.refusals = refusals


class Expired(TurnoutError):
    """Raised for a link that was used or has expired: it never works again."""


class NotKept(TurnoutError):
    """Raised when a value cannot be kept in the journal or handed to a worker process.

    The message names the step or flow and the fix. Never retried: the work is done already, and
    doing it again would change nothing but repeat its effects.
    """


class StepFailed(TurnoutError):
    """Stands in for a recorded step error whose own type cannot be restored; `type` names it."""

    def __init__(self, message: str, *, type: str = "") -> None:
        super().__init__(message)
        self.type = type


FOREIGN = (Exception, SystemExit)
"""The errors of an author's code: `except FOREIGN` stands where it is called.

`sys.exit()` in it ends what called it, never the service; `KeyboardInterrupt` and a cancel pass.
"""


TEXT = "__turnout_text__"
"""The attribute that holds the text of a restored error whose class does not give it again."""


def message_of(error: BaseException) -> str:
    """Return an error's message, also where its class raises when asked for it."""
    try:
        return str(error)
    except FOREIGN as odd:  # an author's error class: its code is foreign too
        kept: str | None = getattr(error, TEXT, None)
        return kept or f"(its message cannot be read: {type(odd).__name__})"


def words_of(error: BaseException) -> str:
    """Return an error in words: its type (of a stand-in, the type it stands for) and message."""
    kind = getattr(error, "type", "") if isinstance(error, StepFailed) else ""
    return f"{kind or type(error).__name__}: {message_of(error)}"


def _remake(
    kind: type[BaseException], args: tuple[Any, ...], state: Mapping[str, Any]
) -> BaseException:
    """Make an error without its constructor; journals of earlier versions call this by name."""
    error = kind.__new__(kind, *args)
    for name, value in state.items():
        BaseException.__setattr__(error, name, value)
    return error


class Exited(StepFailed):
    """Stands in for a `SystemExit` or another error that is no `Exception`.

    Those pass through every asyncio task and would end more than the code that raised them.
    """

    @classmethod
    def of(cls, error: BaseException) -> Exited:
        """Return what stands for `error`, with its traceback."""
        made = cls(message_of(error), type=type(error).__name__)
        return made.with_traceback(error.__traceback__)


def as_exception(error: BaseException) -> Exception:
    """Return an error of `FOREIGN` as an `Exception`, which tasks of asyncio can carry."""
    return error if isinstance(error, Exception) else Exited.of(error)


class CodeChanged(TurnoutError):
    """Raised when a run resumes on changed code that no longer fits its recorded steps."""


class MisplacedTask(TurnoutError):
    """Raised when a task is called where its step would have no stable key."""


class NotAwaited(TurnoutError):
    """Raised when a flow or task does not await what it has called; names call, file and line."""


class TriggerError(TurnoutError):
    """Raised by a trigger that cannot watch now; its supervisor reports it and starts it again."""


class TooEarly(TriggerError):
    """Raised by an after-run action that cannot be carried out yet: it is asked again later."""


class NotFound(TurnoutError):
    """Raised when a run, event, flow or trigger named by an operator does not exist."""


class Refused(TurnoutError):
    """Raised when an operator asks for what the state of a run does not allow."""
