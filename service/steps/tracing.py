"""What a run tells of itself in traces: its attempts, its steps, and what it hands on.

What it causes (child runs, events) is under the span of the run, which is always sent. What it
calls (`http`, Kafka) is under the span of the step. Without a tracer, an event's own trace is
handed on as it came.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from turnout.service import pools
from turnout.service.domain import trace_context
from turnout.service.domain.run import FINISHED, Outcome
from turnout.service.journal.records import ClaimedRun, StepRecord
from turnout.service.telemetry import trace_conventions as names
from turnout.service.telemetry.traces import RunTrace, Span, Tracer, trace_of_run

from .attempt_state import AttemptState
from .scope import current_scope

if TYPE_CHECKING:
    from .context import RunContext


def begin_trace(tracer: Tracer, run: ClaimedRun, state: AttemptState) -> None:
    """Decide whether an attempt is traced, by what a restart does not change: once for all of it.

    One that is not has no trace until it hands one on, and its steps cost nothing more.
    """
    carried = run.members is None and run.event.trace
    if carried or tracer.sampler.samples_run(run.claim.run_id):
        _trace_of(tracer, run, state)


def _trace_of(tracer: Tracer, run: ClaimedRun, state: AttemptState) -> RunTrace:
    trace = state.trace
    if trace is None:
        trace = state.trace = trace_of_run(
            run.claim.run_id, run.event.trace, tracer.sampler, is_caused=run.members is None
        )
    return trace


def trace_attempt(
    tracer: Tracer,
    trace: RunTrace,
    run: ClaimedRun,
    outcome: Outcome,
    started_at: datetime,
    ended_at: datetime,
) -> None:
    """Send the span of an attempt whose outcome is on disk; looks that found nothing have none."""
    if not outcome.repeats:
        tracer.send(
            trace,
            run.claim.run_seq,
            Span(
                name=names.ATTEMPT.format(flow=run.flow),
                context=trace.within(
                    trace_context.id_within(run.claim.run_id, "attempt", run.claim.token)
                ),
                parent=trace.own,
                started_at=started_at,
                ended_at=max(ended_at, started_at),
                attributes=_of_run(run) | {names.ATTEMPT_STATE: str(outcome.state)},
                error=outcome.error,
            ),
        )
    if outcome.state in FINISHED:
        tracer.ended(run.claim.run_seq)


def trace_step(context: RunContext, trace: RunTrace, record: StepRecord) -> None:
    """Send the span of a try of a step whose end is on disk, unless its result was cached."""
    services, run = context.services, context.claimed
    assert services is not None and services.tracer is not None  # it has decided to trace
    if record.origin is not None:
        return
    tries = record.tries - (record.state == "retrying")  # it tells of the next try
    span = Span(
        name=names.STEP.format(task=record.task),
        context=trace.within(_try_id(run, record.key, tries)),
        parent=trace.own,
        started_at=record.started_at,
        ended_at=max(record.finished_at or services.now(), record.started_at),
        attributes=_of_run(run)
        | {
            names.TASK: record.task,
            names.STEP_KEY: record.key,
            names.STEP_TRY: tries,
            names.STEP_STATE: record.state,
        },
        error=record.error,
        has_failed=record.state != "succeeded",  # it has a fallback
    )
    services.tracer.send(trace, run.claim.run_seq, span)


def trace_emit(
    context: RunContext, trace: RunTrace, record: StepRecord, event_type: str, event_id: str
) -> None:
    """Send the span of an event that is on disk."""
    services, run = context.services, context.claimed
    assert services is not None and services.tracer is not None  # as above
    span = Span(
        name=names.EMIT.format(type=event_type),
        kind="producer",
        context=trace.within(_try_id(run, record.key, record.tries)),
        parent=trace.own,
        started_at=record.started_at,
        ended_at=max(services.now(), record.started_at),
        attributes=_of_run(run)
        | {
            names.STEP_KEY: record.key,
            names.EVENT_ID: event_id,
            names.EVENT_TYPE: event_type,
        },
    )
    services.tracer.send(trace, run.claim.run_seq, span)


def caused_by(context: RunContext) -> dict[str, str]:
    """Return the trace context of what the run causes."""
    trace = _traced(context)
    if trace is None:
        return context.event.trace
    return trace_context.written(trace.own, trace.state)


def called_by(context: RunContext) -> dict[str, str]:
    """Return the trace context of what the running step, or the flow itself, calls."""
    state = context.attempt_state
    if state.called_trace is not None:  # in a worker process
        return dict(state.called_trace)
    trace = _traced(context)
    if trace is None:
        return context.event.trace
    return trace_context.written(trace.within(_current_id(context.claimed, trace)), trace.state)


def log_fields(tracer: Tracer, run: ClaimedRun, state: AttemptState) -> dict[str, Any]:
    """Return the fields that every log record of a traced attempt carries."""
    trace = _trace_of(tracer, run, state)
    return run.log_fields() | {
        "trace_id": trace.own.trace_id,
        "span_id": _current_id(run, trace),
    }


def _traced(context: RunContext) -> RunTrace | None:
    """Return the trace of a run that is about to be named to others; None without a tracer."""
    services = context.services
    if services is None or services.tracer is None:
        return None
    run, tracer = context.claimed, services.tracer
    trace = _trace_of(tracer, run, context.attempt_state)
    if trace.own.sampled and trace.owed is None:

        def owe() -> None:
            tracer.owe(trace, run.claim.run_seq)

        if pools.in_thread():
            pools.call_soon(owe)
        else:
            owe()
    return trace


def _of_run(run: ClaimedRun) -> dict[str, str | int | bool]:
    return {
        names.FLOW: run.flow,
        names.RUN_ID: run.claim.run_id,
        names.ATTEMPT_NUMBER: run.attempt,
    }


def _try_id(run: ClaimedRun, key: str, tries: int) -> str:
    """Return the id of a try of a step in this part of the run, the same after a crash.

    A try that a crash has cut off has been named to others, and runs again under the same id.
    """
    part = run.claim.token - run.crashes
    return trace_context.id_within(run.claim.run_id, "step", part, key, tries)


def _current_id(run: ClaimedRun, trace: RunTrace) -> str:
    """Return the id of the span that the running code is in: of a try of a step, or of the run.

    That of an attempt would be missing if the process died during it.
    """
    scope = current_scope.get()
    if scope is None or scope.step is None or not scope.tries:
        return trace.own.span_id
    return _try_id(run, scope.step, scope.tries)
