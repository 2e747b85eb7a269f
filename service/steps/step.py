"""Steps: calls of a task inside a run, each recorded once and never run again.

A recorded result is returned, and a recorded error that the flow caught is raised again, without
running anything. A new step runs with its task's retries and timeout, and its result is durable
before the caller sees it, so before the next step starts. An error that escapes the flow names its
step (`step_of`); the next attempt runs that step again.

Inside a step, calls of tasks are plain calls. Not here: steps of `def` flows (`in_thread`), the
retries of a flow, and the outcome of an attempt (`executor`).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

import orjson

from turnout.service.domain.error_groups import is_final
from turnout.service.domain.errors import (
    FOREIGN,
    MisplacedTask,
    NotKept,
    as_exception,
    words_of,
)
from turnout.service.domain.payload import write_json
from turnout.service.domain.run import Fail, RunError
from turnout.service.domain.task import NO_FALLBACK, Task
from turnout.service.domain.units import format_duration
from turnout.service.flowcontrol.named_limit import NamedLimit, NeverFree
from turnout.service.governance import secrets
from turnout.service.journal.records import RecordedArguments, StepRecord
from turnout.service.telemetry.logs import get_logger
from turnout.service.telemetry.meters import observe_and_count

from . import codec, failures
from . import undo as undos
from .artefacts import Attached
from .author_code import line_of_call, location_in, where
from .backoff import back_off, ends_attempt, next_try
from .cache import use_cache
from .context import CutOff, RunContext
from .failures import describe
from .recorded_arguments import arguments_of
from .recording import store, write_marks
from .scope import Scope, current_scope, here, inside
from .services import Services
from .suspension import stop_if_over
from .tracing import trace_step
from .unawaited import to_await_in_flow

log = get_logger("turnout")

R = TypeVar("R")

_OPEN = ("retrying", "waiting")


# ---------------------------------------------------------------- one step


class StepCall:
    """One call of a task in a run: its key, its tries and what is recorded."""

    __slots__ = (
        "_clock",
        "_error",
        "_line",
        "_started_at",
        "args",
        "arguments",
        "attached",
        "context",
        "done",
        "failed_dependencies",
        "in_error_handler",
        "key",
        "kwargs",
        "last_error",
        "not_before",
        "scope",
        "services",
        "slot",
        "task",
        "tries",
    )  # fmt: skip

    def __init__(
        self,
        task: Task[Any],
        scope: Scope,
        key: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        context, services = scope.context, scope.context.services
        assert services is not None  # `here` gives a scope only where steps can be recorded
        self.task = task
        self.scope = scope
        self.context: RunContext = context
        self.services: Services = services
        self.key = key
        self.args = args
        self.kwargs = kwargs
        self.tries = 0
        self.not_before: datetime | None = None
        self.slot: NamedLimit | None = None
        self.last_error: RunError | None = None
        self.failed_dependencies: Sequence[str] = ()
        self.done: StepRecord | None = None
        self.attached: Attached | None = None
        self.in_error_handler = sys.exception() is not None
        self.arguments: RecordedArguments | None = None
        if context.pending_calls is not None:
            context.pending_calls.refuse_arguments(self, args, kwargs)
        self._line: str | None = None
        if context.sequence is not None:
            context.sequence.visit(key)
            self._line = line_of_call() if key in context.claimed.recorded else None

    def __str__(self) -> str:
        """Return the step in words, for messages."""
        return f"step {self.key!r} of flow {self.context.claimed.flow!r}"

    def recorded(self) -> StepRecord | None:
        """Return what an earlier attempt recorded, or None if the task has to run."""
        known = self.done or self.context.claimed.recorded.get(self.key)
        if self.key[0] != "~":  # compensation steps are found by what they undo
            self.arguments = arguments_of(
                self.task.name, self.task.function, self.args, self.kwargs
            )
        if self.context.over or self.context.attempt_state.handed_back:
            self._stop_if_over(known)
        if known is None:
            if self.context.sequence is not None:
                self.context.sequence.refuse(self.key)
            return None
        if known.superseded:
            return None
        if known.state == "retrying":  # when the process died, or handed the run back
            self.tries = known.tries - 1
            at = orjson.loads(known.result or b"{}").get("until")
            self.not_before = None if at is None else datetime.fromisoformat(at)
            self.last_error = known.error
            return None
        if self.context.sequence is not None and self.arguments is not None:
            flow = self.context.flow
            line = self._line or (None if flow is None else f"{flow.file}:{flow.line}")
            self.context.sequence.compare(known, self.arguments, line)
        return known

    def _stop_if_over(self, known: StepRecord | None) -> None:
        """Raise `CancelledError` if no step may start any more."""
        if known is None or known.superseded or known.state in _OPEN:
            if self.context.attempt_state.handed_back:  # a `finally` of the ending attempt
                raise asyncio.CancelledError("the run is handed back")
            stop_if_over(self.context)

    def recall(self, known: StepRecord) -> Any:
        """Return the recorded result, or raise the recorded error as it was raised then."""
        if known.state == "succeeded":
            return codec.decode(known.encoding, known.result or b"", self.task.returns, name=self)
        raise failures.restore(known)

    async def recall_blob(self, known: StepRecord) -> Any:
        """Return a recorded result that is kept in a file."""
        assert known.blob is not None
        return self.recall(replace(known, result=await self.services.journal.read_blob(known.blob)))

    def register_undo(self, undo: Callable[..., Any]) -> NotKept | None:
        """Register the step's undo, for a run that fails for good; returns why it cannot."""
        given = undos.bound_arguments(self.task.function, self.args, self.kwargs)
        if given is not None:  # None: the arguments do not fit the task
            try:
                self.context.undo_step(
                    self.key, lambda: undos.Undo.of_step(undo, self.task, self.key, given)
                )
            except NotKept as error:
                return error
        return None

    def refusal(self) -> NotKept | Fail | None:
        """Return why the step cannot run at all, after its undo is registered."""
        undo = self.task.undo
        if undo is None and self.task.limit is None:
            return None
        refused = None if undo is None else self.register_undo(undo)
        return refused or (None if self.task.limit is None else self._own_limit())

    def _own_limit(self) -> Fail | None:
        """Return why the task's limit would never be free: the run itself holds a slot there."""
        rule, flow = self.task.limit, self.context.flow
        if rule is None or flow is None or all(each.name != rule.name for each in flow.concurrency):
            return None
        return Fail(
            f"{self} would wait for ever: its task takes a slot of {rule.words}, and so does its "
            "flow (concurrency=); leave it out of one of them"
        )

    async def take_slot(self) -> Fail | None:
        """Wait for a slot at the task's limit, if it has one; returns why that would never end."""
        rule, named = self.task.limit, self.services.named
        if rule is None or rule.name is None:
            return None
        gate = NamedLimit.for_task(rule.name, rule.count, named)
        try:
            await gate.take(self.context.claimed.claim.run_id, named)
        except NeverFree as deadlock:
            awaited = deadlock.awaited.words
            return Fail(
                f"{self} would wait for ever: run {deadlock.holder} has a slot of {gate.words} "
                f"until it ends, and waits for one of {awaited}, which this run has until it ends; "
                f"let a flow take both at once, concurrency=[{awaited}, {gate.words}], and its "
                "tasks none"
            )
        self.slot = gate
        return None

    def leave_slot(self) -> None:
        """Give the slot back; on the loop only."""
        if self.slot is not None:
            self.slot.release()
            self.slot = None

    def begin(self, since: datetime | None = None) -> datetime:
        """Note the start of a try and return it: `since`, if it began in an earlier attempt."""
        self.tries += 1
        self._started_at = self.services.now() if since is None else since
        self._clock = time.perf_counter()
        return self._started_at

    def in_pool(self) -> Awaitable[Any]:
        """Call the task's function in its pool, within its timeout."""
        task = self.task
        return self.services.pools.call(
            task.function,
            self.args,
            self.kwargs,
            pool=task.pool,
            timeout_seconds=task.timeout_seconds,
            name=task.words,
            group="step",
        )

    def succeeded(self, value: Any, *, instead_of: Exception | None = None) -> StepRecord:
        """Return the record of a result, and count it; raises `NotKept` if it cannot be kept.

        The result of a fallback keeps the error it is used `instead_of`, for people to see.
        """
        record = self.record_of(value, instead_of=instead_of)
        self.observe("succeeded" if instead_of is None else "fallback")
        return record

    def record_of(self, value: Any, *, instead_of: Exception | None = None) -> StepRecord:
        """Return the record of a result without counting it; raises `NotKept`."""
        encoding, result = codec.encode(
            value,
            self.task.returns,
            max_bytes=self.services.settings.max_blob_bytes,
            name=self,
        )
        return StepRecord(
            self.key,
            self.task.name,
            "succeeded",
            self.tries,
            self._started_at,
            self.services.now(),
            encoding,
            result,
            None if instead_of is None else describe(instead_of),
            in_error_handler=self.in_error_handler,
            arguments=self.arguments,
        )

    def failed(self, error: Exception, *, again_in: float | None = None) -> StepRecord:
        """Return the record of a failed try, after which another one follows or the step ends.

        The error counts as undelivered until it is raised in the flow (`delivered`).
        """
        failures.set_step(error, self.key)
        if again_in is not None:
            self.observe("retried")
            self._tell_retried(error, again_in)
            self.not_before = self.services.now() + timedelta(seconds=again_in)
            self.last_error = describe(error)
            self.failed_dependencies = self.context.failed_dependencies(error)
            return StepRecord(
                key=self.key,
                task=self.task.name,
                state="retrying",
                tries=self.tries + 1,
                started_at=self._started_at,
                result=write_json({"until": self.not_before.isoformat()}),
                error=self.last_error,
                in_error_handler=self.in_error_handler,
                arguments=self.arguments,
            )
        self.observe("failed")
        self.context.undelivered.add(self.key)
        result, self._error = failures.pack(error, self.services.settings.max_result_bytes)
        return StepRecord(
            key=self.key,
            task=self.task.name,
            state="failed",
            tries=self.tries,
            started_at=self._started_at,
            finished_at=self.services.now(),
            encoding="pickle",
            result=result,
            error=describe(error),
            in_error_handler=self.in_error_handler,
            arguments=self.arguments,
        )

    def next_try(self, error: Exception, scope: Scope) -> float | None:
        """Return in how many seconds the step is tried again, None if it is not.

        What the last try has attached, in its `scope`, is recorded with the end of the step.
        """
        delay = next_try(self, error)
        if delay is None:
            self.take_attached(scope)
        return delay

    def take_attached(self, scope: Scope) -> None:
        """Take over what was attached in a scope, to be recorded with the end of the step."""
        self.attached, scope.attached, scope.is_over = scope.attached, None, True

    async def store(self, record: StepRecord, attached: Attached | None = None) -> StepRecord:
        """Record the end of a try with what it has `attached`; returns what is recorded."""
        return self.told(await store(self.context, record, attached))

    def told(self, record: StepRecord) -> StepRecord:
        """Send the span of a try whose end is on disk, if the run is traced; returns the record."""
        trace = self.context.attempt_state.trace
        if trace is not None and trace.own.sampled:
            trace_step(self.context, trace, record)
        return record

    async def store_last(self, record: StepRecord) -> None:
        """Record the end of a step that has no tries left, with what the last one attached."""
        try:
            await self.store(record, self.attached)
        finally:
            if self.attached is not None:
                self.attached.discard()

    def delivered(self) -> Exception:
        """Return the recorded error, which the caller raises in the flow now."""
        self.context.undelivered.discard(self.key)
        return self._error

    @property
    def leaves_nothing(self) -> bool:
        """Whether nothing of this call is recorded, neither now nor by an earlier attempt."""
        return (
            self.done is None
            and self.last_error is None
            and self.key not in self.context.claimed.recorded
        )

    def observe_pending(self) -> None:
        """Count a look that has found nothing yet."""
        self.observe("pending")

    def _tell_retried(self, error: Exception, again_in: float) -> None:
        log.warning(
            "step.retried",  # the log of the run adds flow, run and attempt
            step=self.key,
            error=secrets.mask(words_of(error)),
            location=location_in(describe(error).traceback),
            tries=self.tries,
            of=self.task.retry.count + 1,
            again_in=format_duration(timedelta(seconds=again_in)),
        )

    def observe(self, outcome: str) -> None:
        """Count a try that ended like this, and how long it took."""
        seconds, count = self.services.metrics.of_step(
            self.context.claimed.flow, self.task.name, outcome
        )
        observe_and_count(seconds, time.perf_counter() - self._clock, count)


# ---------------------------------------------------------------- running it


def call_task(
    task: Task[R], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Coroutine[object, None, R] | None:
    """Assign the key of a step and return what runs it when awaited; None for a plain call."""
    scope = here(task.name)
    if scope is None:
        return None
    flow = scope.context.flow
    if flow is not None and not flow.is_async and task.is_async:
        raise MisplacedTask(
            f"task {task.name!r}, called at {where()}, is async and the flow is not; write the "
            f"flow with `async def`"
        )
    call = StepCall(task, scope, scope.next_key(task.name), args, kwargs)
    return to_await_in_flow(scope, run(call), task.words, frames=3)


async def run(call: StepCall) -> Any:
    """Run one step from the loop, its function in its pool, and return its result."""
    dry_run = call.services.dry_run
    if dry_run is not None and not dry_run.performs(call):
        return dry_run.instead(call, "read" if call.task.reads else "call")
    known = call.recorded()
    if known is not None:
        return call.recall(known) if known.blob is None else await call.recall_blob(known)
    if call.task.cache is not None:
        return await use_cache(call, call.task.cache, perform)
    try:
        return await perform(call)
    except asyncio.CancelledError:  # perhaps for the failure of another branch
        if call.leaves_nothing:
            cut_off = CutOff(call.key, call.task.name, has_begun=call.tries > 0)
            call.context.cut_off += (cut_off,)
        raise


async def perform(call: StepCall) -> Any:
    """Run a step by its task's policy and record the outcome."""
    task, pools = call.task, call.services.pools
    refused = call.refusal()
    if refused is None and call.context.durable_marks:
        await write_marks(call.context)
    while True:
        if refused is None and (call.not_before is not None or task.limit is not None):
            refused = await until_its_turn(call)
        call.begin()
        if refused is not None:
            return await give_up(call, refused)
        step_scope = inside(call.scope, call.key, call.tries)
        outer = current_scope.set(step_scope)
        pools.steps += 1
        try:
            value = await call.in_pool()
            if step_scope.pending_calls is not None:
                step_scope.pending_calls.refuse_left()
            record = call.succeeded(value)
        except FOREIGN as error:  # a task is the author's code
            failure = as_exception(error)
            delay = call.next_try(failure, step_scope)
        else:
            call.done = call.told(await store(call.context, record, step_scope.attached))
            return value
        finally:
            step_scope.discard_attached()
            call.leave_slot()
            pools.steps -= 1
            current_scope.reset(outer)
            if step_scope.pending_calls is not None and step_scope.pending_calls.is_left:
                await step_scope.pending_calls.end(patiently=False)
        if delay is None:
            return await give_up(call, failure)
        await call.store(call.failed(failure, again_in=delay))


async def until_its_turn(call: StepCall) -> Fail | None:
    """Wait until the next try may start: its backoff is over, and its limit has a slot.

    Returns why it may never start.
    """
    if call.not_before is not None:
        await back_off(call)
    return await call.take_slot()


async def give_up(call: StepCall, failure: Exception) -> Any:
    """End a step that has no tries left: return the task's fallback if it has one, else raise."""
    if call.task.fallback is not NO_FALLBACK and not (
        is_final(failure) or ends_attempt(call, failure)
    ):
        failures.set_step(failure, call.key)
        try:
            value = await fallback_of(call, failure)
            record = call.succeeded(value, instead_of=failure)
        except FOREIGN as error:  # a fallback is the author's code
            error.__context__ = error.__context__ or failure  # not set in a pool thread
            failure = as_exception(error)
        else:
            await call.store_last(record)
            return value
    await call.store_last(call.failed(failure))
    raise call.delivered()


async def fallback_of(call: StepCall, failure: Exception) -> Any:
    """Return the value that the task of a step gives instead of an error."""
    task = call.task
    if not callable(task.fallback):
        return task.fallback
    scope = inside(call.scope, call.key, call.tries)
    scope.attached, call.attached = call.attached, None
    with scope:
        try:
            return await call.services.pools.call(
                task.fallback,
                (failure,),
                {},
                timeout_seconds=task.timeout_seconds,
                name=f"the fallback of task {task.name!r}",
                group="step",
            )
        finally:
            call.take_attached(scope)
