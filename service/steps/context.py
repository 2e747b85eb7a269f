"""The running attempt, as the code inside it sees it: `current()`, and the keys of steps.

A step's key is its scope's path, the task's name and its ordinal within the scope, assigned when
the task is *called*: `charge#1`, `gather#1[0]/charge#2`, `charge.map#1[7]`. The same code gets the
same keys after a restart, and so finds its recorded steps. A scope belongs to one asyncio task (and
the pool thread that works for it). A call from anywhere else is refused, since its ordinal would
depend on timing.

Outside a run `current()` is detached: its log works and its keys are stable, so that unit tests
call flows and tasks as plain functions. Not here: running steps (`step`).
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from turnout.service import pools
from turnout.service.domain.errors import MisplacedTask, NotKept
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Flow
from turnout.service.domain.resource import Resources
from turnout.service.domain.run import RunError
from turnout.service.domain.units import utc_now
from turnout.service.journal.contract import Journal
from turnout.service.journal.records import REGISTERED, Claim, ClaimedRun, StepRecord
from turnout.service.pools import Pools, worker
from turnout.service.telemetry import logs

from . import timeouts
from .attempt_state import AttemptState
from .backoff import Backoffs
from .code_change import RecordedSequence
from .durable_marks import DurableMarks, mark_record
from .unawaited import PendingCalls, where
from .undo import Undo

if TYPE_CHECKING:  # flow files import this module; these two cost half their start-up time
    from turnout.service.settings import Settings
    from turnout.service.telemetry.metrics import Metrics

T = TypeVar("T")

Sleep = Callable[[float], Coroutine[Any, Any, None]]
"""How a step waits between its tries, in seconds; a test may replace it."""

_UNDO = "~undo"
"""The suffix of a step's key for the record of its undo."""

DIRECT = "direct"
"""The run id, flow and event id of code that is called outside any run."""

_log = logs.get_logger()


@dataclass(frozen=True, slots=True)
class RunView:
    """What an author may know of the run: `attempt` counts from 1, `replay` from 0."""

    id: str
    flow: str
    attempt: int
    replay: int
    crashes: int
    due_at: datetime


@dataclass(frozen=True, slots=True)
class Services:
    """What an attempt needs from the service to run and record its steps."""

    journal: Journal
    pools: Pools
    settings: Settings
    metrics: Metrics
    now: Callable[[], datetime]
    resources: Resources | None = None
    sleep: Sleep = asyncio.sleep
    host: RunHost | None = None


class RunHost(Protocol):
    """The service as a run sees it; what it does is stored together with the step that asks."""

    async def start(self, claim: Claim, step: StepRecord, flow: str, event: Event) -> None:
        """Start the child run `step.origin` of a flow for `event`, and wait for its end."""

    async def emit(self, claim: Claim, step: StepRecord, again: StepRecord, event: Event) -> None:
        """Store an event and start the flows that listen for its type.

        `again` is recorded instead of `step` if the event was stored before. Raises `Fail`, and
        records no step, if its id was used for another event.
        """

    async def end_children(self, claim: Claim) -> list[str]:
        """Cancel the children that an ending run waits for.

        Returns the steps of the children whose undo it has to await.
        """

    def watch(self, shape: tuple[str, ...]) -> None:
        """Compare these fields of a trigger's events from now on: (trigger, field…)."""

    def link(self, run_id: str, key: str, until: datetime) -> str:
        """Return the signed address where a person answers an approval."""


class Suspend(BaseException):
    """Ends an attempt whose run resumes later; no `except Exception` of a flow catches it.

    `waits` maps the keys of the open waits to the last event each has looked at; `due_at` is when
    the first of them ends. `after` is the error of the last try if the run waits only for the next
    try of a step.
    """

    def __init__(
        self,
        waits: Mapping[str, int],
        due_at: datetime | None = None,
        *,
        after: RunError | None = None,
    ) -> None:
        super().__init__("the run waits and resumes later")
        self.waits = waits
        self.due_at = due_at
        self.after = after


class RunContext:
    """The attempt that is running; what `current()` returns."""

    __slots__ = (
        "_backoffs",
        "_log",
        "broken",
        "claimed",
        "consumed",
        "durable_marks",
        "ended_by",
        "flow",
        "over",
        "pending_calls",
        "root",
        "sequence",
        "services",
        "state",
        "undelivered",
        "undos",
    )  # fmt: skip

    def __init__(
        self,
        run: ClaimedRun,
        state: AttemptState,
        services: Services | None,
        flow: Flow[..., Any] | None = None,
    ) -> None:
        self.claimed = run
        self.state = state
        self.flow = flow
        self.root: Scope | None = None
        self.consumed: set[tuple[str, str, str]] | None = None
        self.services = services
        self.broken: BaseException | None = None
        self.sequence: RecordedSequence | None = None  # of a resumed run
        self.pending_calls: PendingCalls | None = None  # made at the first awaitable call
        self.durable_marks: DurableMarks | None = None  # made with the first mark
        self.undelivered: set[str] = set()  # steps whose recorded error was not raised in the flow
        self.ended_by: list[tuple[str, BaseException]] = []  # (branches, the error they raised)
        self.over: tuple[str, ...] = ()  # key prefixes of branches whose error is recorded
        self.undos: dict[str, Undo] = {}  # what this attempt registered, by key
        self._backoffs: Backoffs | None = None  # made with the first branch or backoff
        self._log = logs.RunLog(run.log_fields)

    @property
    def run(self) -> RunView:
        """The run: id, flow, attempt, replay, crashes, when it was due."""
        run = self.claimed
        return RunView(run.claim.run_id, run.flow, run.attempt, run.replay, run.crashes, run.due_at)

    @property
    def event(self) -> Event:
        """The event this run is for."""
        return self.claimed.event

    @property
    def attempt(self) -> int:
        """Which try of the run this is, from 1."""
        return self.claimed.attempt

    @property
    def tenant(self) -> str:
        """Whose event it is."""
        return self.claimed.event.tenant

    @property
    def log(self) -> logs.Logger:
        """The logger, which adds the run's fields: `log.info("order.charged", receipt=…)`."""
        return _log

    def key(self, name: str = "") -> str:
        """Return an idempotency key to pass downstream: 32 hex digits.

        It is the same for the same step and name over retries, restarts and crashes of this run,
        and differs in every other step, run and replay.
        """
        scope = _scope.get()
        return self.key_at("" if scope is None else scope.step or scope.path, name)

    def key_at(self, step: str, name: str = "") -> str:
        """Return what `key(name)` returns in the step with the key `step`."""
        text = f"{self.claimed.claim.run_id}\n{step}\n{name}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def on_undo(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        """Call `function(*args, **kwargs)` if this run fails for good, the last registered first.

        Each call is a recorded step with retries of its own (a `@task` brings its policy), made
        once, never for an attempt that is retried. Use it in the flow, for what is not a task:
        a task has `undo=`, which cannot come too late. The registration is on disk before the next
        step starts (before this returns in a `def` flow and in an isolated run), so the call is
        made even if the process keeps dying during the run.
        Raises `NotKept` for a function that a restart could not find again and for arguments larger
        than `max_result_bytes`, `MisplacedTask` in a step.
        """
        scope = _scope.get()
        if scope is not None and (scope.step is not None or self.services is None):
            raise MisplacedTask(
                "on_undo() is for a flow that runs on the loop or in a thread, not for a task: "
                "after a restart a recorded task is not run again and could not register it"
            )
        undo = Undo.of(function, args, kwargs)
        scope = here("on_undo")
        if scope is None or self.services is None:
            return  # outside a run it is only checked
        key = scope.next_key("on_undo")
        marks = self._register(key, undo, f"on_undo({undo.name})")
        if marks is None:
            return
        if pools.in_thread():
            pools.on_loop(marks.write(key))
        else:
            marks.begin(key)

    def undo_step(self, key: str, undo: Callable[[], Undo]) -> None:
        """Undo a step if this run fails for good, even if the step fails or is cut off.

        The registration is on disk once the durable marks are. If the step runs again, the first
        registration counts.
        """
        mark = f"{key}{_UNDO}"
        known = self.claimed.recorded.get(mark)
        if known is not None and known.result is not None:
            self.undos[mark] = Undo.unpack(known.result)
        else:
            self._register(mark, undo(), f"the undo of step {key!r}")

    def _register(self, key: str, undo: Undo, what: str) -> DurableMarks | None:
        """Register an undo; returns the durable marks if it is not recorded yet."""
        assert self.services is not None  # there are scopes only where steps can be recorded
        limit = self.services.settings.max_result_bytes
        if len(undo.arguments) > limit:
            raise NotKept(
                f"{what}: the arguments are larger than {limit} bytes (max_result_bytes); pass an "
                f"id instead"
            )
        self.undos[key] = undo
        if key in self.claimed.recorded:
            return None
        return self.leave_mark(mark_record(key, REGISTERED, undo.pack(), self.services.now()))

    def leave_mark(self, mark: StepRecord) -> DurableMarks:
        """Leave a durable mark after the steps so far; returns all that are not recorded yet."""
        if self.durable_marks is None:
            assert self.services is not None  # there are scopes only where steps can be recorded
            flush = self.services.journal.flush if self.claimed.isolated else None
            self.durable_marks = DurableMarks(self.record_step, flush)
        self.durable_marks.add(mark)
        return self.durable_marks

    def record_step(self, step: StepRecord) -> asyncio.Future[None]:
        """Submit a step to the journal at once; it is durable when the future is done."""
        assert self.services is not None  # steps are recorded where there is a journal only
        if self.claimed.recorded:
            self.state.changed.add(step.key)
        return self.services.journal.record_step(self.claimed.claim, step)

    def writing(self, key: str, *, opens_wait: bool = False) -> Claim:
        """Note that a step is about to be recorded, and return the claim to record it under."""
        self.state.changed.add(key)
        self.state.has_waits = self.state.has_waits or opens_wait
        return self.claimed.claim

    @property
    def backoffs(self) -> Backoffs:
        """Which branches of the attempt work, and which back off before a step's next try."""
        if self._backoffs is None:
            self._backoffs = Backoffs()
        return self._backoffs

    @property
    def cancelled(self) -> bool:
        """Whether the attempt was cancelled: for loops in threads, which cannot be ended.

        Async code gets `CancelledError` at its next await; worker processes are killed.
        """
        return pools.stopped()

    def log_bytes(self) -> bytes | None:
        """Return the attempt's records as JSON Lines, bounded; None when it logged nothing."""
        return self._log.as_bytes()


class Scope:
    """Counts the steps of a flow or a branch; `step` is the key of the step it is inside of."""

    __slots__ = (
        "_owner",
        "_token",
        "context",
        "counts",
        "path",
        "pending_calls",
        "step",
        "suspended",
    )

    def __init__(self, context: RunContext, path: str, *, step: str | None = None) -> None:
        self.context = context
        self.path = path
        self.step = step
        task = pools.caller() if step is None else None
        self._owner = None if task is None else weakref.ref(task)  # weak: the task holds this
        self.pending_calls: PendingCalls | None = None  # inside a step
        self.counts: dict[str, int] = {}
        self.suspended: Suspend | None = None

    def __enter__(self) -> None:
        self._token = _scope.set(self)

    def __exit__(self, *error: object) -> None:
        _scope.reset(self._token)

    @property
    def is_owned(self) -> bool:
        """Whether the calling code runs in the task that owns this scope, or in its thread."""
        caller = pools.caller()
        return caller is not None and self._owner is not None and self._owner() is caller

    def refuse_left(self) -> None:
        """Raise `NotAwaited` if the step called something that has not ended."""
        if self.pending_calls is not None:
            self.pending_calls.refuse_left()

    def next_key(self, name: str) -> str:
        """Return the key of the next call of `name` in this scope."""
        count = self.counts[name] = self.counts.get(name, 0) + 1
        return f"{self.path}{name}#{count}"


_scope: ContextVar[Scope | None] = ContextVar("turnout_scope", default=None)
_open_attempts = 0


class open_attempt:  # noqa: N801  used like a function, as `inside`
    """Make an attempt of `run` the calling asyncio task's running one, until the block ends."""

    __slots__ = ("_context", "_running", "_scope")

    def __init__(
        self, run: ClaimedRun, state: AttemptState, flow: Flow[..., Any], services: Services
    ) -> None:
        self._context = context = RunContext(run, state, services, flow)
        if run.recorded:
            changed = run.code_version not in ("", flow.code_version)
            context.sequence = RecordedSequence(run.recorded, enforced=changed)

    def __enter__(self) -> RunContext:
        global _open_attempts
        context = self._context
        context.root = Scope(context, "")
        self._scope = _scope.set(context.root)
        self._running = logs.running.set(context._log)
        _open_attempts += 1
        return context

    def __exit__(self, *error: object) -> None:
        global _open_attempts
        _open_attempts -= 1
        logs.running.reset(self._running)
        _scope.reset(self._scope)
        self._context.root = None  # a cycle, which only the garbage collector would free


def current() -> RunContext:
    """Return the running attempt; outside any run, a detached one named `direct`."""
    scope = _scope.get()
    return _detached() if scope is None else scope.context


def _detached() -> RunContext:
    now = utc_now()
    event = Event(id=DIRECT, source="turnout", type=DIRECT, time=now)
    run = ClaimedRun(
        claim=Claim(0, DIRECT, 0), flow=DIRECT, event_seq=0, event=event, attempt=1, crashes=0,
        replay=0, order_key=None, limit_key=None, due_at=now,
    )  # fmt: skip
    return RunContext(run, AttemptState(run), None)


# ---------------------------------------------------------------- scopes


def here(name: str) -> Scope | None:
    """Return the scope that counts a call of task `name`; None for a plain call.

    A call outside any run is a plain call, and so is one inside a step, which is recorded as a
    whole. Raises `MisplacedTask` where a step would have no stable key.
    """
    scope = _scope.get()
    if scope is None:
        if _open_attempts and _in_foreign_thread():
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


def to_await(coroutine: Coroutine[Any, Any, T], words: str) -> Coroutine[Any, Any, T]:
    """Return `coroutine`; in a run it is remembered, named by `words`, until it has ended."""
    scope = _scope.get()
    if scope is None:
        return coroutine
    if scope.step is not None:
        called = scope.pending_calls
        if called is None:
            called = scope.pending_calls = PendingCalls(f"step {scope.step!r}")
        return called.add(coroutine, words)
    context = scope.context
    if context.pending_calls is None:
        context.pending_calls = PendingCalls(f"flow {context.claimed.flow!r}")
    return context.pending_calls.add(coroutine, words)


def suspend(
    waits: Mapping[str, int], due_at: datetime | None = None, *, after: RunError | None = None
) -> NoReturn:
    """End the attempt, or first this branch of it; the run resumes when a wait is over."""
    scope = _scope.get()
    assert scope is not None  # only steps suspend, and they have a scope
    stop_if_over(scope.context)
    flow = scope.context.flow
    if flow is not None and flow.is_async and not scope.is_owned:  # a thread waits elsewhere
        raise MisplacedTask(
            "a wait, or a child run, is awaited in an asyncio task turnout did not open, where it "
            "would end the attempt under the others; use turnout's own `await gather(…)`"
        )
    timeout = timeouts.around()
    if timeout is not None:
        raise MisplacedTask(
            f"a wait, or a child run, is inside a timeout ({timeout}), which ends with the attempt "
            "while the wait goes on; use the wait's own `timeout=`, or the timeout around tasks"
        )
    scope.suspended = Suspend(waits, due_at, after=after)
    raise scope.suspended


def may_suspend() -> bool:
    """Whether the attempt can be suspended here."""
    scope = _scope.get()
    if scope is None or scope.step is not None:
        return False
    flow = scope.context.flow
    if not scope.is_owned and (flow is None or flow.is_async):
        return False
    return timeouts.around() is None


def stop_if_over(context: RunContext) -> None:
    """Raise `CancelledError` in a branch that an earlier attempt ended by another one's error."""
    scope = _scope.get()
    if context.over and scope is not None and scope.path.startswith(context.over):
        raise asyncio.CancelledError("another branch has failed")


def suspend_with(branches: Iterable[Scope], waits: Mapping[str, int] | None = None) -> None:
    """Suspend if one of these ended branches was suspended, or there are other `waits`.

    The earliest due time counts.
    """
    suspended = [each.suspended for each in branches if each.suspended is not None]
    if suspended or waits:
        due = [each.due_at for each in suspended if each.due_at is not None]
        all_waits = dict(waits or {})
        for each in suspended:
            all_waits |= each.waits
        reasons = [each.after for each in suspended]
        after = None if waits or None in reasons else reasons[0]
        suspend(all_waits, min(due, default=None), after=after)


def _in_foreign_thread() -> bool:
    return pools.caller() is None and threading.current_thread() is not threading.main_thread()


def enter(scope: Scope) -> Scope:
    """Make `scope` the scope of the calling asyncio task, until it ends."""
    _scope.set(scope)
    return scope


def inside(scope: Scope, key: str) -> Scope:
    """Run a `with` body as the step `key`: tasks called in it are part of the step."""
    return Scope(scope.context, scope.path, step=key)


# ---------------------------------------------------------------- worker processes


def _snapshot() -> tuple[worker.Restore, tuple[Any, ...]] | None:
    scope = _scope.get()
    if scope is None:
        return None
    run = scope.context.claimed._replace(arguments=None, recorded={}, ended={}, progress={})
    return _restore, (run, scope.path, scope.step)


def _restore(run: ClaimedRun, path: str, step: str | None) -> Callable[[], None]:
    scope = Scope(RunContext(run, AttemptState(run), None), path, step=step)
    _scope.set(scope)
    return scope.refuse_left


worker.travels(_snapshot)


def _step_here() -> str | None:
    scope = _scope.get()
    return None if scope is None else scope.step


logs.tells_step(_step_here)
