"""The keys of steps: each call of a task counts in the scope it is made in.

A step's key is its scope's path, the task's name and its ordinal within the scope, assigned when
the task is *called*: `charge#1`, `gather#1[0]/charge#2`, `charge.map#1[7]`. The same code gets the
same keys after a restart, and so finds its recorded steps. A scope belongs to one asyncio task (and
the pool thread that works for it). A call from anywhere else is refused, since its ordinal would
depend on timing.

Not here: what the running attempt knows (`context`).
"""

from __future__ import annotations

import threading
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING

from turnout.service import pools
from turnout.service.domain.errors import MisplacedTask
from turnout.service.telemetry import logs

from .author_code import where

if TYPE_CHECKING:
    from turnout.service.journal.records import ClaimedRun

    from .artefacts import Attached
    from .context import RunContext
    from .suspension import Suspend
    from .unawaited import PendingCalls


class Scope:
    """Counts the steps of a flow or a branch; `step` is the key of the step it is inside of.

    `tries` is the number of the step's try.
    """

    __slots__ = (
        "_owner",
        "_token",
        "attached",
        "context",
        "counts",
        "is_over",
        "path",
        "pending_calls",
        "step",
        "suspended",
        "tries",
    )

    def __init__(
        self, context: RunContext, path: str, *, step: str | None = None, tries: int = 0
    ) -> None:
        self.context = context
        self.path = path
        self.step = step
        self.tries = tries
        task = pools.caller() if step is None else None
        self._owner = None if task is None else weakref.ref(task)  # weak: the task holds this
        self.pending_calls: PendingCalls | None = None  # inside a step
        self.attached: Attached | None = None  # inside a step that attaches something
        self.is_over = False  # what a step attaches then, from a thread it left, is not kept
        self.counts: dict[str, int] = {}
        self.suspended: Suspend | None = None

    def __enter__(self) -> None:
        self._token = current_scope.set(self)

    def __exit__(self, *error: object) -> None:
        current_scope.reset(self._token)

    @property
    def is_owned(self) -> bool:
        """Whether the calling code runs in the task that owns this scope, or in its thread."""
        caller = pools.caller()
        return caller is not None and self._owner is not None and self._owner() is caller

    def discard_attached(self) -> None:
        """Delete what the step, which is over, has attached and what was not recorded."""
        self.is_over = True
        if self.attached is not None:
            self.attached.discard()

    def refuse_left(self) -> None:
        """Raise `NotAwaited` if the step called something that has not ended."""
        if self.pending_calls is not None:
            self.pending_calls.refuse_left()

    def next_key(self, name: str) -> str:
        """Return the key of the next call of `name` in this scope."""
        count = self.counts[name] = self.counts.get(name, 0) + 1
        return f"{self.path}{name}#{count}"


def root_path(run: ClaimedRun) -> str:
    """Return what the keys of a run's steps begin with: nothing in its first round of items."""
    members = run.members
    return "" if members is None or not members.round else f"items#{members.round}/"


_attempts_running = 0
"""How many runs are being tried in this process.

Not an attribute of a class: Python reads those of a class that changes several times slower.
"""


def open_root(context: RunContext, path: str) -> Scope:
    """Return the scope of a flow, that of the calling asyncio task until `close_root`."""
    global _attempts_running
    scope = Scope(context, path)
    scope.__enter__()
    _attempts_running += 1
    return scope


def close_root(scope: Scope) -> None:
    """Restore the scope that was current before."""
    global _attempts_running
    _attempts_running -= 1
    scope.__exit__()


current_scope: ContextVar[Scope | None] = ContextVar("turnout_scope", default=None)
"""The scope of the code that is running in this context."""


def here(name: str) -> Scope | None:
    """Return the scope that counts a call of task `name`; None for a plain call.

    A call outside any run is a plain call, and so is one inside a step, which is recorded as a
    whole. Raises `MisplacedTask` where a step would have no stable key.
    """
    scope = current_scope.get()
    if scope is None:
        if _attempts_running and _in_foreign_thread():
            raise MisplacedTask(
                f"task {name!r} is called in a thread turnout did not open, at {where()}; call it "
                f"from the flow itself, and use `gather` or `{name}.map` to run several at once"
            )
        return None
    if scope.step is not None:
        return None
    context = scope.context
    if context.services is None:
        raise MisplacedTask(
            f'task {name!r} is called in a flow with pool="process", where steps cannot be '
            f'recorded; run the flow in a thread and give the task pool="process"'
        )
    if not scope.is_owned:
        raise MisplacedTask(
            f"task {name!r} is called in an asyncio task or thread turnout did not open, at "
            f"{where()}, where its step has no stable key; use `await gather(…)` or "
            f"`{name}.map` instead"
        )
    if context.broken is not None:
        raise context.broken
    if scope.suspended is not None:
        raise scope.suspended  # no step runs in a `finally` on the way out
    return scope


def _in_foreign_thread() -> bool:
    return pools.caller() is None and threading.current_thread() is not threading.main_thread()


def enter(scope: Scope) -> Scope:
    """Make `scope` the scope of the calling asyncio task, until it ends."""
    current_scope.set(scope)
    return scope


def inside(scope: Scope, key: str, tries: int = 0) -> Scope:
    """Run a `with` body as the step `key`: tasks called in it are part of the step.

    `tries` is the number of its try, 0 where nothing is tried.
    """
    return Scope(scope.context, scope.path, step=key, tries=tries)


def _step_here() -> str | None:
    scope = current_scope.get()
    return None if scope is None else scope.step


logs.tells_step(_step_here)
