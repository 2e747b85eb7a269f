"""Steps of `def` flows: the task runs in the flow's own thread, and the loop records it.

The rules are those of `step`.
"""

from __future__ import annotations

import time
from typing import Any

from turnout.service import pools
from turnout.service.domain.errors import FOREIGN, as_exception

from .cache import use_cache
from .recording import write_marks
from .scope import inside
from .step import StepCall, give_up, perform, until_its_turn


def run(call: StepCall) -> Any:
    """Run one step in the flow's own thread; the loop records it."""
    dry_run = call.services.dry_run
    if dry_run is not None and not dry_run.performs(call):
        return dry_run.instead(call, "read" if call.task.reads else "call")
    known = call.recorded()
    if known is not None:
        has_blob = known.blob is not None
        return pools.on_loop(call.recall_blob(known)) if has_blob else call.recall(known)
    if call.task.cache is not None:
        return pools.on_loop(use_cache(call, call.task.cache, perform))
    return _perform(call)


def _perform(call: StepCall) -> Any:
    """Run a step by its task's policy and record the outcome."""
    if (refused := call.refusal()) is not None:
        call.begin()
        return pools.on_loop(give_up(call, refused))
    if call.context.durable_marks:
        pools.on_loop(write_marks(call.context))
    while True:
        if call.not_before is not None or call.task.limit is not None:
            _wait_for_turn(call)
        call.begin()
        step_scope = inside(call.scope, call.key, call.tries)
        try:
            with step_scope:
                value = _work(call)
            if step_scope.pending_calls is not None:
                pools.on_loop(step_scope.pending_calls.see_through())
            pools.in_thread()  # raises if the call was stopped: its result is not used
            record = call.succeeded(value)
        except FOREIGN as error:  # a task is the author's code
            failure = as_exception(error)
            delay = call.next_try(failure, step_scope)
        else:
            pools.on_loop(call.store(record, step_scope.attached))
            return value
        finally:
            step_scope.discard_attached()
            if call.task.limit is not None:
                pools.call_soon(call.leave_slot)
        if delay is None:
            return pools.on_loop(give_up(call, failure))
        pools.on_loop(call.store(call.failed(failure, again_in=delay)))


def _wait_for_turn(call: StepCall) -> None:
    try:
        pools.on_loop(until_its_turn(call))
    except BaseException:  # stopped while it waited, or in the moment when it got the slot
        pools.call_soon(call.leave_slot)
        raise


def _work(call: StepCall) -> Any:
    task = call.task
    if task.pool == "process":
        return pools.on_loop(
            call.services.pools.call(
                task.function,
                call.args,
                call.kwargs,
                pool="process",
                timeout_seconds=task.timeout_seconds,
                name=task.words,
            )
        )
    seconds = task.timeout_seconds
    if seconds is None:
        return task.function(*call.args, **call.kwargs)
    started = time.perf_counter()
    with pools.told_after(seconds):
        value = task.function(*call.args, **call.kwargs)
    if time.perf_counter() - started > seconds:
        # The thread cannot be stopped; the promise is that a late result is not used.
        raise TimeoutError(f"task {task.name!r} did not end within its timeout of {seconds:g}s")
    return value
