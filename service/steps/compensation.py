"""Compensation: after a run failed for good its steps are undone, then `on_failure` is called.

The failure is itself a step (`~failed`), recorded first, with every undo the flow registered. After
a crash from then on the run resumes here; the flow never runs again. Each undo, the last registered
first, and then the hook is a recorded step with retries of its own, so each happens once. An undo
that fails for good does not stop the others; the run then ends with `undo="failed"`, and an
operator's retry runs only what is not done.

A cancelled run that has something to undo is undone here too: the journal records `~failed` with
the error `cancelled`. It did not fail, so the hook is called only if its undo fails.

A run during which the process kept dying has no attempt that could report its failure. `rescue`
records `~failed` for it, and its undos are those in the journal. If the process keeps dying during
compensation, the step at which it died fails and the next one runs: five deaths a step at most.

Not here: runs that never started (refused data) have nothing to undo.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import orjson

from turnout.service.domain.errors import (
    ClaimLost,
    CodeChanged,
    JournalBroken,
    JournalError,
    message_of,
)
from turnout.service.domain.event import Event
from turnout.service.domain.payload import write_json
from turnout.service.domain.retry import RetryPolicy
from turnout.service.domain.run import (
    CANCELLED,
    PROCESS_DIED,
    UNDO_FAILED,
    Outcome,
    RunError,
    RunState,
)
from turnout.service.domain.task import Task
from turnout.service.journal.records import FAILED, REGISTERED, ClaimedRun, StepRecord
from turnout.service.project import AnyFlow
from turnout.service.telemetry.logs import get_logger

from . import codec, step
from .context import RunContext
from .on_failure import hook_arguments
from .recording import store
from .scope import Scope, root_path
from .suspension import Suspend
from .undo import Undo, parameters_of_step

log = get_logger("turnout.compensation")

RETRIES = RetryPolicy(
    count=4, delay=timedelta(seconds=1), factor=4, max=timedelta(minutes=1), jitter=True
)
"""How a plain function is retried here; a `@task` brings its own policy."""

_TIMEOUT_SECONDS = 300.0


def ended_before(run: ClaimedRun) -> Outcome | None:
    """Return the recorded outcome of a run whose compensation is not finished, or None."""
    known = run.recorded.get(FAILED)
    if known is None:
        return None
    if known.error is not None and known.error.type == CANCELLED:  # the cancel counted the attempt
        return Outcome(state=RunState.CANCELLED, reason=known.error.message or None, counts=False)
    return Outcome(state=RunState.FAILED, error=known.error, counts=not run.dead)


async def conclude(context: RunContext, flow: AnyFlow, outcome: Outcome) -> Outcome:
    """Undo a failed or cancelled run and call its hook; returns once all of it is recorded.

    Returns the outcome of the run: the given one, `process_died` if the process kept dying during
    compensation, or `undo_failed` if the run was cancelled and its undo failed. Raises only
    `ClaimLost`, `JournalBroken` and a cancel.
    """
    known = FAILED in context.claimed.recorded
    if not known and flow.on_failure is None and not _registered(context):
        return outcome
    try:
        undos, outcome, deaths = await _record_failure(context, outcome)
        left = await _end_children(context) if undos and context.attempt_state.has_waits else None
    except (ClaimLost, JournalBroken):
        raise
    except JournalError as error:
        _log_broken(error)
        return replace(outcome, undo="failed") if _registered(context) else outcome
    if left:  # the children acted later, so they are undone first
        waits = dict.fromkeys(left, 0)
        return Outcome(state=RunState.WAITING, waits=waits, counts=False)
    compensation = _Compensation(context, deaths)
    outcome = _after_undo(await compensation.undo(undos, outcome), compensation.undo_failed)
    if flow.on_failure is not None and outcome.state is RunState.FAILED:
        outcome = await compensation.tell(flow.on_failure, outcome)
    return outcome


async def _end_children(context: RunContext) -> list[str]:
    services = context.services
    if services is None or services.host is None:
        return []
    return await services.host.end_children(context.claimed.claim)


def _after_undo(outcome: Outcome, failed: Sequence[str]) -> Outcome:
    """Return the outcome after the undo: a cancelled run whose undo failed has failed."""
    if outcome.undo != "failed" or outcome.state is not RunState.CANCELLED:
        return outcome
    because = "" if outcome.reason is None else f" ({outcome.reason})"
    at = f" at {', '.join(failed)}" if failed else ""
    error = RunError(UNDO_FAILED, f"the run was cancelled{because}, and its undo failed{at}")
    return replace(outcome, state=RunState.FAILED, error=error)


# ---------------------------------------------------------------- the undos of a run


async def _record_failure(context: RunContext, outcome: Outcome) -> tuple[list[Undo], Outcome, int]:
    """Record, once, that the run has failed.

    Returns the undos, the outcome, and at how many steps of the compensation the process kept
    dying.
    """
    services = context.services
    assert services is not None  # the executor gave them
    known = context.claimed.recorded.get(FAILED)
    if known is None:
        now = services.now()
        undos = _registered(context)
        record = StepRecord(
            key=FAILED,
            task=FAILED,
            state="failed",
            tries=1,
            started_at=now,
            finished_at=now,
            result=write_json(
                {"undos": [undo.as_dict() for undo in undos], "again": outcome.again}
            ),
            error=outcome.error,
        )
        await store(context, record)
        return undos, outcome, 0
    deaths = known.tries - 1
    stored = known.result if known.blob is None else await services.journal.read_blob(known.blob)
    if stored is None:  # the process kept dying: no attempt recorded the undos
        return _registered(context), outcome, deaths
    told = orjson.loads(stored)
    undos = [Undo.from_dict(undo) for undo in told["undos"]]
    return undos, replace(outcome, again=told["again"]), deaths


def _registered(context: RunContext) -> list[Undo]:
    """Return the registered undos, in order.

    Those of earlier attempts count too, unless this attempt registered the same undo elsewhere
    because the code changed; not those of earlier rounds, whose items are complete.
    """
    path = root_path(context.claimed)
    recorded = context.claimed.recorded.items()
    earlier = {
        key: Undo.unpack(it.result)
        for key, it in recorded
        if it.task == REGISTERED and it.result is not None and key.startswith(path)
    }
    again = context.undos
    return [
        undo
        for key, undo in (earlier | again).items()
        if key in again or undo not in again.values()
    ]


@dataclass(frozen=True, slots=True)
class _Part:
    """One step of the compensation; `prepare` finds the task and its arguments."""

    scope: str
    name: str
    prepare: Callable[[], tuple[Task[Any], tuple[Any, ...], Mapping[str, Any]]]

    def __str__(self) -> str:
        """Return the key of the step."""
        return f"{self.scope}/{self.name}#1"


class _Compensation:
    """Runs the steps of a compensation in order; `deaths` steps that killed the process fail."""

    def __init__(self, context: RunContext, deaths: int) -> None:
        self._context = context
        self._deaths = deaths
        self.undo_failed: list[str] = []

    async def undo(self, undos: list[Undo], outcome: Outcome) -> Outcome:
        """Run the undos, the last first; one that fails does not stop the others."""
        broken = False
        steps: Mapping[str, StepRecord] | None = None
        for number, undo in reversed(list(enumerate(undos))):
            try:
                if undo.step and steps is None:
                    steps = await _steps(self._context)
                step_of = None if steps is None else await _whole(self._context, steps, undo)
                preparing = partial(_undoing, self._context, undo, step_of)
                part = _Part(f"~undo[{number}]", undo.name, preparing)
                state, outcome = await self._do(part, outcome)
            except (ClaimLost, JournalBroken):
                raise
            except JournalError as error:
                _log_broken(error)
                broken = True
                break
            if state != "succeeded":
                self.undo_failed.append(str(part))
        if not undos:
            return outcome
        return replace(outcome, undo="failed" if broken or self.undo_failed else "done")

    async def tell(self, hook: Callable[..., Any], outcome: Outcome) -> Outcome:
        """Call the flow's hook once, with the steps that could not be undone."""
        error = outcome.error
        if error is not None and self.undo_failed:
            error = replace(error, undo_failed=tuple(self.undo_failed))
        event = replace(self._context.claimed.event)  # decoded again: the flow may have changed it
        telling = partial(_telling, hook, error, event)
        try:
            part = _Part("~on_failure", _task(hook).name, telling)
            return (await self._do(part, outcome))[1]
        except (ClaimLost, JournalBroken):
            raise
        except JournalError as broken:
            _log_broken(broken)
            return outcome

    async def _do(self, part: _Part, outcome: Outcome) -> tuple[str, Outcome]:
        """Run one step unless it is recorded; return its state and the outcome of the run."""
        known = _known(self._context.claimed, part)
        if known is not None and known.state != "retrying":
            state = known.state
            died = known.error is not None and known.error.type == PROCESS_DIED
        elif died := self._deaths > 0:
            state = "failed"
            await _give_up(self._context, part, known)
        else:
            state = await _attend(self._context, part)
        if died:
            self._deaths -= 1
            outcome = _died(outcome, part)
        return state, outcome


def _log_broken(error: JournalError) -> None:
    log.error("compensation.broken", error=str(error))


def _known(run: ClaimedRun, part: _Part) -> StepRecord | None:
    """Return the record of a step, found without the author's code."""
    beginning = f"{part.scope}/"
    found = (it for key, it in run.recorded.items() if key.startswith(beginning))
    return next(found, None)


async def _steps(context: RunContext) -> Mapping[str, StepRecord]:
    """Return the run's recorded steps, including those of this attempt."""
    assert context.services is not None  # the executor gave them
    steps = await context.services.journal.steps(context.claimed.claim.run_seq)
    return {record.key: record for record in steps}


async def _whole(
    context: RunContext, steps: Mapping[str, StepRecord], undo: Undo
) -> StepRecord | None:
    """Return the record of the step to undo if it has a result of its own, else None."""
    known = steps.get(undo.step)
    if known is None or known.state != "succeeded" or known.error is not None:
        return None  # it failed, was cut off, or has its fallback's result
    if known.blob is None or context.services is None:
        return known
    return replace(known, result=await context.services.journal.read_blob(known.blob))


def _undoing(
    context: RunContext, undo: Undo, known: StepRecord | None
) -> tuple[Task[Any], tuple[Any, ...], Mapping[str, Any]]:
    try:
        function, args, kwargs = undo.call()
        takes = parameters_of_step(function, kwargs) if undo.step else ()
        if "key" in takes:
            kwargs["key"] = context.key_at(undo.step)
        if "result" in takes:
            kwargs["result"] = None if known is None else _result(undo, known)
    except CodeChanged as error:
        return _task(_raiser(error, undo.name)), (), {}
    return _task(function), args, kwargs


def _result(undo: Undo, known: StepRecord) -> Any:
    name = f"step {undo.step!r}"
    return codec.decode(known.encoding, known.result or b"", undo.find_task().returns, name=name)


def _telling(
    hook: Callable[..., Any], error: RunError | None, event: Event
) -> tuple[Task[Any], tuple[Any, ...], Mapping[str, Any]]:
    task = _task(hook)
    return task, (), hook_arguments(task.function, error, event)


def _raiser(error: Exception, name: str) -> Callable[[], None]:
    def missing() -> None:
        raise error

    missing.__name__ = name
    return missing


# ---------------------------------------------------------------- running a step


async def _attend(context: RunContext, part: _Part) -> Literal["succeeded", "failed"]:
    """Run one step of the compensation; a failure is recorded and logged, not raised."""
    scope = Scope(context, f"{part.scope}/")
    try:
        task, args, kwargs = part.prepare()
        await step.run(step.StepCall(task, scope, scope.next_key(task.name), args, kwargs))
    except (ClaimLost, JournalError, Suspend):
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or _is_cancel(error):
            raise
        _report(part, f"{type(error).__name__}: {message_of(error)}")
        return "failed"
    return "succeeded"


def _is_cancel(error: BaseException) -> bool:
    """Whether the attempt is cancelled; after a failed task group only the request shows it."""
    running = asyncio.current_task()
    asked = running is not None and running.cancelling() > 0
    return asked and isinstance(error, asyncio.CancelledError)


async def _give_up(context: RunContext, part: _Part, known: StepRecord | None) -> None:
    """Record the step during which the process kept dying as failed, without running it."""
    assert context.services is not None  # the executor gave them
    now = context.services.now()
    error = RunError(PROCESS_DIED, "the process died again and again while this ran")
    _report(part, f"{error.type}: {error.message}")
    record = StepRecord(
        key=str(part) if known is None else known.key,
        task=part.name if known is None else known.task,
        state="failed",
        tries=1 if known is None else known.tries,
        started_at=now if known is None else known.started_at,
        finished_at=now,
        error=error,
    )
    await store(context, record)


def _report(part: _Part, error: str) -> None:
    log.error("compensation.failed", step=f"{part.scope}/{part.name}", error=error)


def _died(outcome: Outcome, part: _Part) -> Outcome:
    """Return the outcome if the process kept dying in compensation; it keeps the first error."""
    failure = outcome.error
    if outcome.state is RunState.CANCELLED or (
        failure is not None and failure.type == PROCESS_DIED
    ):
        return outcome
    why = "" if failure is None else f", which had failed: {failure.type}: {failure.message}"
    message = f"the process died again and again at {part.scope}/{part.name} of this run{why}"
    at = None if failure is None else failure.step
    return replace(outcome, error=RunError(PROCESS_DIED, message, at))


def _task(function: Callable[..., Any]) -> Task[Any]:
    if isinstance(function, Task):
        return function
    return Task(
        function=function,
        name=function.__name__,
        retry=RETRIES,
        timeout_seconds=_TIMEOUT_SECONDS,
    )
