"""The outcome of an attempt that a dependency failed and that is not spent: the run waits.

So may all that need the dependency.

Not here: which attempts these are (`steps.needs`), and the breaker (`flowcontrol.dependency`).
"""

from __future__ import annotations

from turnout.service.domain.error_groups import asked_pause, asked_wait, deciding
from turnout.service.domain.run import DependencyPause, Fail, Outcome, Retry, RunState
from turnout.service.journal.records import PAUSED
from turnout.service.project import AnyFlow
from turnout.service.steps.branches import to_run_again
from turnout.service.steps.context import RunContext
from turnout.service.steps.durable_marks import mark_record
from turnout.service.steps.failures import describe
from turnout.service.steps.needs import pause_count


def dependency_outcome(context: RunContext, flow: AnyFlow, error: BaseException) -> Outcome | None:
    """Return the outcome of an attempt that a dependency failed and that is not spent, or None."""
    pause = asked_pause(error)
    if pause is not None and all(need.name != pause for need in flow.needs):
        return _not_needed(flow, error, pause)
    need = context.unspent_for(error)
    if need is None or context.services is None:
        return None
    decides, now = deciding(error), context.services.now()
    asked = asked_wait(decides) if isinstance(decides, Retry) else None
    until = now + (need.probe if asked is None else asked)
    if pause is not None:
        count = pause_count(context.claimed.recorded)
        context.leave_mark(mark_record(f"{PAUSED}[{count}]", PAUSED, b"null", now))
    return Outcome(
        state=RunState.RETRYING,
        error=describe(error),
        due_at=until,
        counts=False,
        again=to_run_again(context, error),
        failed_dependencies=() if pause is not None else context.failed_dependencies(error),
        pause=None if pause is None else DependencyPause(pause, until),
    )


def _not_needed(flow: AnyFlow, error: BaseException, name: str) -> Outcome:
    """Fail a run for good that pauses what its flow does not need: no retry would help."""
    needed = ", ".join(repr(need.name) for need in flow.needs) or "nothing"
    refused = Fail(
        f"Retry(pause={name!r}): {flow.words} needs {needed}; write needs=dependency({name!r}) on "
        f"the flow"
    )
    refused.__traceback__ = error.__traceback__
    return Outcome(state=RunState.FAILED, error=describe(refused))
