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
import typing
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property, partial
from typing import Any, Generic, TypeVar

import orjson

from turnout.service.domain.error_groups import is_final
from turnout.service.domain.errors import (
    FOREIGN,
    ClaimLost,
    CodeChanged,
    JournalBroken,
    JournalError,
    JournalFull,
    NotKept,
    Overloaded,
    as_exception,
)
from turnout.service.domain.flow import Pool
from turnout.service.domain.retry import RetryPolicy, delay_after
from turnout.service.domain.run import RunError
from turnout.service.journal.records import Cached, RecordedArguments, StepRecord

from . import cache, codec, failures
from . import undo as undos
from .backoff import LONGEST_HELD_SECONDS
from .cache import CachePolicy
from .context import (
    RunContext,
    Scope,
    Services,
    inside,
    may_suspend,
    stop_if_over,
    suspend,
)
from .failures import describe
from .recorded_arguments import arguments_of, author_line

R = TypeVar("R", covariant=True)
T = TypeVar("T")

FULL_DISK_WAIT_SECONDS = 0.5
_OPEN = ("retrying", "waiting")
_UNKNOWN = RunError("Exception", "a try of a step failed")
NO_FALLBACK: Any = object()
"""The `fallback` of a task that has none; None is a valid fallback."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Task(Generic[R]):
    """A function whose calls inside a run are steps, and the policy of each step."""

    function: Callable[..., Any]
    name: str
    retry: RetryPolicy
    timeout_seconds: float | None = None
    pool: Pool = "thread"
    fallback: Any = NO_FALLBACK
    cache: CachePolicy | None = None
    undo: Callable[..., Any] | None = None
    file: str = ""
    line: int = 0

    @cached_property
    def words(self) -> str:
        """The task in words, for messages."""
        return f"task {self.name!r}"

    @cached_property
    def returns(self) -> Any:
        """The return annotation, by which results are encoded; unannotated if it cannot be read."""
        try:
            hints = typing.get_type_hints(self.function, include_extras=True)
        except (NameError, TypeError, SyntaxError, AttributeError):
            return codec.UNANNOTATED  # known to a type checker only
        return hints.get("return", codec.UNANNOTATED)


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
        "context",
        "done",
        "in_error_handler",
        "key",
        "kwargs",
        "last_error",
        "not_before",
        "scope",
        "services",
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
        services = scope.context.services
        assert services is not None  # `here` gives a scope only where steps can be recorded
        self.task = task
        self.scope = scope
        self.context: RunContext = scope.context
        self.services: Services = services
        self.key = key
        self.args = args
        self.kwargs = kwargs
        self.tries = 0
        self.not_before: datetime | None = None
        self.last_error: RunError | None = None
        self.done: StepRecord | None = None
        self.in_error_handler = sys.exc_info()[0] is not None
        if self.context.pending_calls is not None and (args or kwargs):
            self.context.pending_calls.refuse_arguments(self, (*args, *kwargs.values()))
        self.arguments: RecordedArguments | None = None
        self._line: str | None = None
        if self.context.sequence is not None:
            self.context.sequence.visit(key)
            self._line = author_line() if key in self.context.claimed.recorded else None

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
        if self.context.over or self.context.state.handed_back:
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
            if self.context.state.handed_back:  # a `finally` of the ending attempt
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

    def register_undo(self, undo: Callable[..., Any]) -> None:
        """Register the step's undo, for a run that fails for good; raises `NotKept`."""
        given = undos.bound_arguments(self.task.function, self.args, self.kwargs)
        if given is not None:  # None: the arguments do not fit the task
            self.context.undo_step(
                self.key, lambda: undos.Undo.of_step(undo, self.task, self.key, given)
            )

    def begin(self) -> None:
        """Note the start of a try."""
        self.tries += 1
        self._started_at = self.services.now()
        self._clock = time.perf_counter()

    def succeeded(self, value: Any, *, instead_of: Exception | None = None) -> StepRecord:
        """Return the record of a result; raises `NotKept` if it cannot be kept.

        The result of a fallback keeps the error it is used `instead_of`, for people to see.
        """
        self._observe("succeeded" if instead_of is None else "fallback")
        encoding, result = codec.encode(
            value,
            self.task.returns,
            max_bytes=self.services.settings.max_spilled_bytes,
            name=self,
        )
        return StepRecord(
            key=self.key,
            task=self.task.name,
            state="succeeded",
            tries=self.tries,
            started_at=self._started_at,
            finished_at=self.services.now(),
            encoding=encoding,
            result=result,
            error=None if instead_of is None else describe(instead_of),
            in_error_handler=self.in_error_handler,
            arguments=self.arguments,
        )

    async def read(self, hit: Cached) -> Any:
        """Return the value of a cached result; raises an error if it cannot be used."""
        data = hit.result
        if hit.blob is not None:
            data = await self.services.journal.read_blob(hit.blob)
        return codec.decode(hit.encoding, data or b"", self.task.returns, name=self)

    async def take(self, hit: Cached) -> None:
        """Record a cached result as this step's, with the run it comes from and zero tries."""
        now = self.services.now()
        await self.keep(
            StepRecord(
                key=self.key,
                task=self.task.name,
                state="succeeded",
                tries=0,
                started_at=now,
                finished_at=now,
                encoding=hit.encoding,
                result=hit.result,
                origin=hit.run_id,
                blob=hit.blob,
                in_error_handler=self.in_error_handler,
                arguments=self.arguments,
            )
        )
        flow = self.context.claimed.flow
        self.services.metrics.steps.labels(flow, self.task.name, "cached").inc()

    def failed(self, error: Exception, *, again_in: float | None = None) -> StepRecord:
        """Return the record of a failed try, after which another one follows or the step ends.

        The error counts as undelivered until it is raised in the flow (`delivered`).
        """
        failures.set_step(error, self.key)
        if again_in is not None:
            self._observe("retried")
            self.not_before = self.services.now() + timedelta(seconds=again_in)
            self.last_error = describe(error)
            return StepRecord(
                key=self.key,
                task=self.task.name,
                state="retrying",
                tries=self.tries + 1,
                started_at=self._started_at,
                result=orjson.dumps({"until": self.not_before.isoformat()}),
                error=self.last_error,
                in_error_handler=self.in_error_handler,
                arguments=self.arguments,
            )
        self._observe("failed")
        self.context.undelivered.add(self.key)
        result, self._error = failures.keep(error, self.services.settings.max_result_bytes)
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

    def delivered(self) -> Exception:
        """Return the recorded error, which the caller raises in the flow now."""
        self.context.undelivered.discard(self.key)
        return self._error

    async def back_off(self) -> None:
        """Wait until the next try is due, also after a restart.

        A long wait during which no branch works suspends the run, which gives its slot back.
        """
        if self.not_before is None:
            return
        left = (self.not_before - self.services.now()).total_seconds()
        if left > LONGEST_HELD_SECONDS and may_suspend():
            if not await self.context.backoffs.wait(left, self.services.sleep):
                suspend({}, self.not_before, after=self.last_error or _UNKNOWN)
        elif left > 0:
            await self.services.sleep(left)

    def delay(self, error: Exception) -> float | None:
        """Return how long to wait before the next try, or None when there is none."""
        if is_final(error):
            return None
        delay = delay_after(self.task.retry, self.tries, error, now=self.services.now())
        return None if delay is None else delay.total_seconds()

    def keep(self, record: StepRecord) -> Coroutine[Any, Any, StepRecord]:
        """Make a record durable; see `keep`."""
        return keep(self.context, record)

    def _observe(self, outcome: str) -> None:
        seconds, count = self.services.metrics.of_step(
            self.context.claimed.flow, self.task.name, outcome
        )
        seconds.observe(time.perf_counter() - self._clock)
        count.inc()


async def keep(context: RunContext, record: StepRecord) -> StepRecord:
    """Make a record durable, a large result in a file; see `durable`. Returns what is recorded."""
    services = context.services
    assert services is not None  # steps are recorded where there is a journal only
    journal = services.journal
    if record.result is None or len(record.result) <= services.settings.max_result_bytes:
        await durable(context, partial(context.record_step, record))
        return record
    result = record.result

    async def store() -> StepRecord:
        async with journal.store_blob(result) as name:
            recorded = replace(record, result=None, blob=name)
            await context.record_step(recorded)
            return recorded

    return await durable(context, store)


async def durable(context: RunContext, write: Callable[[], Awaitable[T]]) -> T:
    """Write to the journal, waiting while the disk is full; other failures end the attempt."""
    while True:
        try:
            if context.durable_marks:
                await context.durable_marks.write_all()
            return await write()
        except (JournalFull, Overloaded):
            await asyncio.sleep(FULL_DISK_WAIT_SECONDS)
        except (ClaimLost, JournalError) as error:
            # A flow that catches this must not run its next step on top of a lost one.
            context.broken = error
            raise


async def write_marks(context: RunContext) -> None:
    """Write the durable marks the flow left since its last step; the next step waits for them."""
    await durable(context, partial(asyncio.sleep, 0))


async def write_last_marks(context: RunContext) -> None:
    """Write the durable marks the flow left since its last step, at the end of the attempt."""
    try:
        await write_marks(context)
    except JournalBroken:
        raise
    except JournalError:
        pass  # the next attempt leaves them again


async def run(call: StepCall) -> Any:
    """Run one step from the loop, its function in its pool, and return its result."""
    known = call.recorded()
    if known is not None:
        return call.recall(known) if known.blob is None else await call.recall_blob(known)
    return await (_perform(call) if call.task.cache is None else use_cache(call, call.task.cache))


async def use_cache(call: StepCall, policy: CachePolicy) -> Any:
    """Return the cached result of a call with equal input, or do the work and cache it."""
    journal, task, now = call.services.journal, call.task, call.services.now
    tenant = call.context.claimed.event.tenant
    key = cache.key_of(task.function, task.name, call.args, call.kwargs, tenant=tenant)
    async with cache.alone(journal, key):
        hit = await journal.cached(key, now=now())
        if hit is not None:
            with nullcontext() if hit.blob is None else journal.hold_blob(hit.blob):
                try:
                    value = await call.read(hit)
                except (CodeChanged, JournalError):
                    pass  # a miss: it no longer fits the code, or its file is gone
                else:
                    await call.take(hit)
                    return value
        value = await _perform(call)
        if call.done is not None:
            cached = Cached(
                key=key,
                task=task.name,
                run_id=call.context.claimed.claim.run_id,
                encoding=call.done.encoding,
                result=call.done.result,
                blob=call.done.blob,
                stored_at=now(),
                expires_at=now() + policy.ttl,
            )
            with suppress(JournalFull):  # it will be computed again
                await journal.cache(cached)
        return value


async def _perform(call: StepCall) -> Any:
    """Run a step by its task's policy and record the outcome."""
    task, pools = call.task, call.services.pools
    if task.undo is not None:
        try:
            call.register_undo(task.undo)
        except NotKept as error:
            call.begin()
            return await end(call, error)
    if call.context.durable_marks:
        await write_marks(call.context)
    while True:
        if call.not_before is not None:
            await call.back_off()
        call.begin()
        step_scope = inside(call.scope, call.key)
        pools.steps += 1
        try:
            with step_scope:
                value = await pools.call(
                    task.function,
                    call.args,
                    call.kwargs,
                    pool=task.pool,
                    timeout_seconds=task.timeout_seconds,
                    name=task.words,
                    group="step",
                )
            step_scope.refuse_left()
            record = call.succeeded(value)
        except FOREIGN as error:  # a task is the author's code
            failure = as_exception(error)
            delay = call.delay(failure)
        else:
            call.done = await call.keep(record)
            return value
        finally:
            pools.steps -= 1
            if step_scope.pending_calls is not None and step_scope.pending_calls.is_left:
                await step_scope.pending_calls.end(patiently=False)
        if delay is None:
            return await end(call, failure)
        await call.keep(call.failed(failure, again_in=delay))


async def end(call: StepCall, failure: Exception) -> Any:
    """End a step without tries left: return the task's fallback if it has one, else raise."""
    if call.task.fallback is not NO_FALLBACK and not is_final(failure):
        failures.set_step(failure, call.key)
        try:
            value = await _fallback(call, failure)
            record = call.succeeded(value, instead_of=failure)
        except FOREIGN as error:  # a fallback is the author's code
            error.__context__ = error.__context__ or failure  # not set in a pool thread
            failure = as_exception(error)
        else:
            await call.keep(record)
            return value
    await call.keep(call.failed(failure))
    raise call.delivered()


async def _fallback(call: StepCall, failure: Exception) -> Any:
    task = call.task
    if not callable(task.fallback):
        return task.fallback
    with inside(call.scope, call.key):
        return await call.services.pools.call(
            task.fallback,
            (failure,),
            {},
            timeout_seconds=task.timeout_seconds,
            name=f"the fallback of task {task.name!r}",
            group="step",
        )
