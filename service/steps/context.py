"""The running attempt, as the code inside it sees it: `current()`.

Outside a run `current()` is detached: its log works and its keys are stable, so that unit tests
call flows and tasks as plain functions. Not here: the keys of steps (`scope`), running them
(`step`).
"""

from __future__ import annotations

import hashlib
from asyncio import Future
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from turnout.service import pools
from turnout.service.domain.errors import MisplacedTask, NotKept
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Flow, Need
from turnout.service.domain.guess import OF_CURRENT, no_attribute
from turnout.service.domain.units import utc_now
from turnout.service.journal.records import NOTHING, REGISTERED, Claim, ClaimedRun, StepRecord
from turnout.service.pools import worker
from turnout.service.telemetry import logs

from . import artefacts, needs
from .attempt_state import AttemptState
from .backoff import Backoffs
from .code_change import RecordedSequence
from .durable_marks import DurableMarks, mark_record
from .flow_state import State
from .history import EarlierRun, history
from .scope import Scope, close_root, current_scope, here, open_root, root_path
from .services import Services
from .tracing import called_by, log_fields
from .unawaited import PendingCalls
from .undo import Undo

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


class CutOff(NamedTuple):
    """A step that was cancelled before anything of it was recorded."""

    key: str
    task: str
    has_begun: bool


class RunContext:
    """The attempt that is running; what `current()` returns."""

    __slots__ = (
        "_backoffs",
        "_log",
        "attempt_state",
        "broken",
        "claimed",
        "consumed",
        "cut_off",
        "durable_marks",
        "ended_by",
        "flow",
        "over",
        "pending_calls",
        "polls",
        "root",
        "sequence",
        "services",
        "undelivered",
        "undos",
        "used_state",
    )  # fmt: skip

    def __init__(
        self,
        run: ClaimedRun,
        state: AttemptState,
        services: Services | None,
        flow: Flow[..., Any] | None = None,
    ) -> None:
        self.claimed = run
        self.attempt_state = state
        self.used_state: State | None = None  # made at the first use of `state`
        self.flow = flow
        self.root: Scope | None = None
        self.consumed: set[tuple[str, str, str]] | None = None
        self.services = services
        self.broken: BaseException | None = None
        self.sequence: RecordedSequence | None = None  # of a resumed run
        self.pending_calls: PendingCalls | None = None  # made at the first awaitable call
        self.polls: Mapping[str, StepRecord] = NOTHING  # those this attempt has opened
        self.durable_marks: DurableMarks | None = None  # made with the first mark
        self.undelivered: set[str] = set()  # steps whose recorded error was not raised in the flow
        self.ended_by: list[tuple[str, BaseException]] = []  # (branches, the error they raised)
        self.cut_off: tuple[CutOff, ...] = ()  # steps that were cancelled, in order
        self.over: tuple[str, ...] = ()  # key prefixes of branches whose error is recorded
        self.undos: dict[str, Undo] = {}  # what this attempt registered, by key
        self._backoffs: Backoffs | None = None  # made with the first branch or backoff
        tracer = None if services is None else services.tracer
        self._log = logs.RunLog(
            run.log_fields if tracer is None else partial(log_fields, tracer, run, state)
        )

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
    def trace(self) -> dict[str, str]:
        """The W3C trace context to send along with a call of your own: `traceparent` and so on.

        It names the span of the running step, so that what is called shows under it; `http` and
        `kafka.publish` send it by themselves. Where nothing is traced it is that of the event.
        """
        return called_by(self)

    @property
    def log(self) -> logs.Logger:
        """The logger, which adds the run's fields: `log.info("order.charged", receipt=…)`."""
        return _log

    @property
    def state(self) -> State:
        """What the flow keeps between runs: `state.get(default)` and `state.set(value)`.

        A small value for each flow, and for each key of `ordered_by=`. It is read once a run, and
        written if the run succeeds: a cursor that a crash neither skips nor doubles. Give the flow
        `concurrency=1` or `ordered_by=`: a run whose state another one has changed meanwhile is
        started over from where it read it. Outside a run there is none, and nothing is kept.
        """
        if self.used_state is None:
            self.used_state = State(self)
        return self.used_state

    def history(self, limit: int = 20) -> list[EarlierRun]:
        """Return the last runs of this flow that have ended, the newest first, with their results.

        At most 100; each with `id`, `state`, `result`, `error`, `reason`, `queued_at` and
        `finished_at`. It is read once and recorded, so that a resumed run sees the same. Results of
        together 64 KiB: those beyond are None, with `left_out` true. Outside a run it is empty.
        Raises `MisplacedTask` in a task: read it in the flow, and pass it on.
        """
        return history(self, limit)

    def key(self, name: str = "") -> str:
        """Return an idempotency key to pass downstream: 32 hex digits.

        It is the same for the same step and name over retries, restarts and crashes of this run,
        and differs in every other step, run and replay.
        """
        scope = current_scope.get()
        return self.key_at("" if scope is None else scope.step or scope.path, name)

    def key_at(self, step: str, name: str = "") -> str:
        """Return what `key(name)` returns in the step with the key `step`."""
        text = f"{self.claimed.claim.run_id}\n{step}\n{name}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def attach(self, name: str, content: bytes | Path, *, type: str | None = None) -> str:
        """Attach a file to the run, in a task: it is kept with the run; returns the name.

        `turnout show` lists it, `turnout artefact RUN NAME` and the API give it back, and a later
        task reads it: `artefact(name).read()`. It is recorded with its step: one that is tried or
        run again leaves what the try that ended it attached; the last content of a name counts.

        `name` is one part of a path, at most 255 bytes; `type` is a media type, by default what
        the name says. `content` is bytes, or the `Path` of a regular file in the working folder,
        which is copied now; at most `max_artefact_bytes` (a setting). An `async def` task attaches
        up to 16 MiB of bytes, and anything by `await asyncio.to_thread(current().attach, …)`.
        Outside a run it is only checked. Raises `NotKept` for what cannot be kept, and
        `MisplacedTask` in the body of a flow and in a task with `pool="process"`.
        """
        return artefacts.attach(name, content, type)

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
        scope = current_scope.get()
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

    def failed_dependencies(self, error: BaseException) -> Sequence[str]:
        """Return the dependencies of the flow that have failed, by an error that ends a try."""
        return () if self.flow is None else needs.failed_dependencies(self.flow.needs, error)

    def unspent_for(self, error: BaseException) -> Need | None:
        """Return the dependency for which an attempt that ends by `error` is not spent, if any."""
        if self.flow is None:
            return None
        return needs.unspent_for(
            self.flow.needs, self.claimed.recorded, self.attempt_state.probes, error
        )

    def record_step(self, step: StepRecord) -> Future[None]:
        """Submit a step to the journal at once; it is durable when the future is done."""
        assert self.services is not None  # steps are recorded where there is a journal only
        if self.claimed.recorded:
            self.attempt_state.changed.add(step.key)
        return self.services.journal.record_step(self.claimed.claim, step)

    def writing(self, key: str, *, opens_wait: bool = False) -> Claim:
        """Note that a step is about to be recorded, and return the claim to record it under."""
        self.attempt_state.changed.add(key)
        self.attempt_state.has_waits = self.attempt_state.has_waits or opens_wait
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

    def forget_log(self) -> None:
        """Keep nothing of what the attempt has logged with its run."""
        self._log.forget()

    def log_bytes(self) -> bytes | None:
        """Return the attempt's records as JSON Lines, bounded; None when it logged nothing."""
        return self._log.as_bytes() if self._log.is_used else None


class _Current(RunContext):
    """The context of a run once its author has asked for it: a misspelt name gets a hint.

    A class of its own, since Python reads every attribute of an object several times slower if its
    class has `__getattr__`, and most runs never ask.
    """

    __slots__ = ()

    if not TYPE_CHECKING:  # a type checker that saw it would take any misspelt name

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(
                no_attribute("current()", "current", name, OF_CURRENT, dir(RunContext))
            )


class open_attempt:  # noqa: N801  used like a function, as `inside`
    """Make an attempt of `run` the calling asyncio task's running one, until the block ends."""

    __slots__ = ("_context", "_root", "_running")

    def __init__(
        self, run: ClaimedRun, state: AttemptState, flow: Flow[..., Any], services: Services
    ) -> None:
        self._context = context = RunContext(run, state, services, flow)
        if run.recorded:
            changed = run.code_version not in ("", flow.code_version)
            path = root_path(run)
            context.sequence = RecordedSequence(run.recorded, enforced=changed, path=path)

    def __enter__(self) -> RunContext:
        context = self._context
        run = context.claimed
        path = "" if run.members is None else root_path(run)
        context.root = self._root = open_root(context, path)
        self._running = logs.running.set(context._log)
        return context

    def __exit__(self, *error: object) -> None:
        logs.running.reset(self._running)
        close_root(self._root)
        self._context.root = None  # a cycle, which only the garbage collector would free


def current() -> RunContext:
    """Return the running attempt: its run, event, log and keys.

    In a flow and in a task, also in a thread or a worker process. Outside any run it is a detached
    one named `direct`, whose log works and whose keys are stable, so that unit tests call flows as
    plain functions. Raises nothing; what a member raises stands with it.

    ```python
    from turnout import current, event, flow, task


    @task
    async def charge(order: str) -> str:
        return current().key("charge")[:4]  # the same for every try of this step


    @flow(on=event("order.placed"))
    async def place(order: dict[str, str]) -> str:
        now = current()
        now.log.info("order.placed", order=order["id"], attempt=now.attempt, replay=now.run.replay)
        await charge(order["id"])
        return now.event.type
    ```
    """
    scope = current_scope.get()
    context = _detached() if scope is None else scope.context
    if type(context) is RunContext:
        context.__class__ = _Current
    return context


def _detached() -> RunContext:
    now = utc_now()
    event = Event(id=DIRECT, source="turnout", type=DIRECT, time=now)
    run = ClaimedRun(
        claim=Claim(0, DIRECT, 0), flow=DIRECT, event_seq=0, event=event, attempt=1, crashes=0,
        replay=0, order_key=None, keys=None, due_at=now,
    )  # fmt: skip
    return RunContext(run, AttemptState(run), None)


# ---------------------------------------------------------------- worker processes


def _snapshot() -> tuple[worker.Restore, tuple[Any, ...]] | None:
    scope = current_scope.get()
    if scope is None:
        return None
    context = scope.context
    run = replace(context.claimed, arguments=None, recorded={}, ended={}, progress={})
    is_traced = context.services is not None and context.services.tracer is not None
    return _restore, (run, scope.path, scope.step, called_by(context) if is_traced else None)


def _restore(
    run: ClaimedRun, path: str, step: str | None, trace: Mapping[str, str] | None
) -> Callable[[], None]:
    state = AttemptState(run)
    state.called_trace = trace
    scope = Scope(RunContext(run, state, None), path, step=step)
    current_scope.set(scope)
    return scope.refuse_left


worker.travels(_snapshot)
