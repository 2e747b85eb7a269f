"""The end of a run that failed for good: what it did is undone, and its flow's hook is told.

That the run failed is itself a step (`~failed`), recorded before anything else, with every undo
the flow had registered; a crash from there on goes on here and never runs the flow again. Each
undo, the last registered first, and then the hook is a recorded step with retries of its own: so
each happens once, and none of them changes how the run ended.

Not here: runs that no attempt ended (refused data, a process that kept dying): they have no steps.
"""

from __future__ import annotations

import asyncio
import inspect
import pickle
import typing
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from turnout.service.errors import (
    ClaimLost,
    CodeChanged,
    JournalBroken,
    JournalError,
    SetupError,
    message_of,
)
from turnout.service.event import Event
from turnout.service.journal.records import Claim, StepRecord
from turnout.service.logs import get_logger
from turnout.service.project import AnyFlow
from turnout.service.retry import RetryPolicy
from turnout.service.run import Outcome, RunError, RunState

from . import step
from .context import RunContext, Scope
from .step import Task
from .undo import Undo

log = get_logger("turnout.ending")

FAILED = "~failed"
"""The key of the step that says a run has failed; keys of an ending's steps begin with `~`."""

RETRIES = RetryPolicy(
    count=4, delay=timedelta(seconds=1), factor=4, max=timedelta(minutes=1), jitter=True
)
"""How a plain function is retried here; a `@task` brings its own policy."""

_TIMEOUT_SECONDS = 300.0


def failed_before(claim: Claim) -> Outcome | None:
    """Return how the run ended, when that is recorded and only its ending is left to do."""
    known = claim.recorded.get(FAILED)
    return None if known is None else Outcome(state=RunState.FAILED, error=known.error)


async def conclude(context: RunContext, flow: AnyFlow, outcome: Outcome) -> None:
    """Undo and tell, for a run that came to the failed `outcome`; returns when all is recorded.

    Raises `ClaimLost` and `JournalBroken` only, and passes a cancel on.
    """
    claim = context.claim
    if FAILED not in claim.recorded and not context.undos and flow.on_failure is None:
        return
    try:
        undos = await _mark(context, outcome)
        for number in reversed(range(len(undos))):
            await _undo(context, number, undos[number])
        if flow.on_failure is not None:
            task = _task(flow.on_failure)
            arguments = _arguments(task.function, outcome.error, claim.event)
            await _attend(context, "~on_failure", task, (), arguments)
    except (ClaimLost, JournalBroken):
        raise
    except JournalError as error:
        log.error("ending.broken", flow=claim.flow, run=claim.run_id, error=str(error))  # noqa: TRY400  one line


async def _mark(context: RunContext, outcome: Outcome) -> Sequence[Undo]:
    """Record that the run has failed and what is to be undone, once; returns the latter."""
    known = context.claim.recorded.get(FAILED)
    if known is not None:
        undos: Sequence[Undo] = pickle.loads(known.result or b"")
        return undos
    services = context.services
    assert services is not None  # the executor gave them
    now = services.now()
    record = StepRecord(
        key=FAILED,
        task=FAILED,
        state="failed",
        tries=1,
        started_at=now,
        finished_at=now,
        encoding="pickle",
        result=pickle.dumps(tuple(context.undos), protocol=5),
        error=outcome.error,
    )
    await step.keep(context, record)
    return tuple(context.undos)


async def _undo(context: RunContext, number: int, undo: Undo) -> None:
    try:
        function, args, kwargs = undo.call()
    except CodeChanged as error:
        problem = error
        function, args, kwargs = _raiser(problem, undo.name), (), {}
    await _attend(context, f"~undo[{number}]", _task(function), args, kwargs)


def _raiser(error: Exception, name: str) -> Callable[[], None]:
    def missing() -> None:
        raise error

    missing.__name__ = name
    return missing


async def _attend(
    context: RunContext, place: str, task: Task[Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Run one step of the ending; its failure is recorded and logged, and stops nothing."""
    scope = Scope(context, f"{place}/")
    try:
        await step.run(step.Call(task, scope, scope.take(task.name), args, kwargs))
    except (ClaimLost, JournalError):
        raise
    except BaseException as error:
        running = asyncio.current_task()
        if isinstance(error, KeyboardInterrupt) or (running is not None and running.cancelling()):
            raise
        log.error(  # noqa: TRY400  the traceback is in the step
            "ending.failed",
            flow=context.claim.flow,
            run=context.claim.run_id,
            step=f"{place}/{task.name}",
            error=f"{type(error).__name__}: {message_of(error)}",
        )


def _task(function: Callable[..., Any]) -> Task[Any]:
    if isinstance(function, Task):
        return function
    return Task(
        function=function,
        name=function.__name__,
        retry=RETRIES,
        timeout_seconds=_TIMEOUT_SECONDS,
    )


# ---------------------------------------------------------------- the hook's parameters


def check_hook(function: object) -> None:
    """Raise `SetupError` unless `function` can be a flow's `on_failure`."""
    plain = function.function if isinstance(function, Task) else function
    if not inspect.isfunction(plain):
        raise SetupError(f"on_failure={function!r}: write a function or a @task")
    _arguments(plain, None, None)


def _arguments(
    function: Callable[..., Any], error: RunError | None, event: Event | None
) -> dict[str, Any]:
    """Fill a hook's parameters: `RunError` and `Event` by annotation, or by the names for them."""
    try:
        hints = typing.get_type_hints(function)
    except NameError:  # known to a type checker only: the names decide
        hints = {}
    filled: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind = hints.get(name)
        if kind is RunError or (kind is None and name == "error"):
            filled[name] = error
        elif kind is Event or (kind is None and name == "event"):
            filled[name] = event
        elif parameter.default is inspect.Parameter.empty:
            raise SetupError(
                f"on_failure={function.__name__}: nothing fills parameter {name!r}; a hook takes "
                f"`error: RunError` and `event: Event`, and `current()` has the rest"
            )
    return filled
