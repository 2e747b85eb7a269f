"""Traces: which runs are traced, and the spans of what they do.

A run has one span, and under it one for each attempt and each try of a step; what a run waits for
is the gap between them. The run's span is sent when the run has ended, whatever ends it: before the
first other span of a run is sent, the journal notes that its own is owed. So no span is without its
parent, however the process dies. A try is sent once its end is on disk, so none is sent twice.

Runs of several events, and of one that was held back, have a trace of their own, with links.

Not here: when spans are sent, and those of runs (`app.spans`); how they leave the process (`otlp`).
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from turnout.service.domain import trace_context
from turnout.service.domain.event import Event
from turnout.service.domain.run import Run, RunError
from turnout.service.domain.trace_context import Sampler, SpanContext
from turnout.service.governance import secrets

from . import trace_conventions as names

Kind: TypeAlias = Literal["internal", "consumer", "producer"]
MOST_LINKS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that took time; `links` are what it came from, if that is not its parent.

    `error` is what was raised in it, and `has_failed` whether that was its end.
    """

    name: str
    context: SpanContext
    parent: SpanContext | None
    started_at: datetime
    ended_at: datetime
    attributes: names.Attributes
    kind: Kind = "internal"
    error: RunError | None = None
    has_failed: bool = True
    links: Sequence[SpanContext] = ()


class RunTrace:
    """The trace of a run: `own` is the span of the run, `parent` what it is under, if anything.

    `state` is the `tracestate` that came along. `owed` is done once the journal knows that the
    run's span must be sent.
    """

    __slots__ = ("owed", "own", "parent", "state")

    def __init__(self, own: SpanContext, parent: SpanContext | None, state: str | None) -> None:
        self.own = own
        self.parent = parent
        self.state = state
        self.owed: Future[None] | None = None

    def within(self, span_id: str) -> SpanContext:
        """Return a span of the same trace."""
        return self.own._replace(span_id=span_id)


def trace_of_run(
    run_id: str, carried: Mapping[str, str], sampler: Sampler, *, is_caused: bool = True
) -> RunTrace:
    """Return the trace of a run: that of its event, if one came with it and `is_caused`."""
    trace_id, span_id = trace_context.ids_of_run(run_id)
    parent = trace_context.read(carried) if is_caused and carried else None
    state = None
    if parent is not None:
        trace_id, state = parent.trace_id, trace_context.state_of(carried)
    return RunTrace(
        SpanContext(trace_id, span_id, sampler.samples(trace_id, parent)), parent, state
    )


class Tracer:
    """Makes the spans of attempts and steps.

    `send` takes a span, `owe` notes in the journal that the span of a run must be sent, `ended`
    hears of each traced run that has ended.
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        send: Callable[[Span], None],
        owe: Callable[[int], Future[None]],
        ended: Callable[[int], None],
    ) -> None:
        self.sampler = sampler
        self.ended = ended
        self._send = send
        self._owe = owe

    def send(self, trace: RunTrace, run_seq: int, span: Span) -> None:
        """Send a span of a sampled run, once the run's own is owed."""
        owed = self.owe(trace, run_seq)
        if owed.done():
            self._send_if_owed(owed, span)
        else:
            owed.add_done_callback(lambda done: self._send_if_owed(done, span))

    def owe(self, trace: RunTrace, run_seq: int) -> Future[None]:
        """Note that the span of a run must be sent: something is about to name it."""
        owed = trace.owed
        if owed is None or (owed.done() and _has_failed(owed)):
            owed = trace.owed = self._owe(run_seq)
        return owed

    def _send_if_owed(self, owed: Future[None], span: Span) -> None:
        if not _has_failed(owed):  # the disk is full, which is told elsewhere
            self._send(span)


def _has_failed(owed: Future[None]) -> bool:
    return owed.cancelled() or owed.exception() is not None


def span_of_run(
    trace: RunTrace, run: Run, event: Event, *, ends: int, members: Sequence[Event] = ()
) -> Span:
    """Return the span of a run that has ended, as it did `ends` times before."""
    own = trace.own
    parent = trace.parent
    if ends:  # an operator has had it tried again: what it did since is in a span of its own
        parent, own = own, trace.within(trace_context.id_within(run.id, "again", ends))
    attributes: dict[str, str | int | bool] = {
        names.FLOW: run.flow,
        names.RUN_ID: run.id,
        names.STATE: str(run.state),
        names.ATTEMPTS: run.attempts,
        names.TRIGGER: run.trigger,
        names.TENANT: run.tenant,
        names.EVENT_ID: secrets.mask(run.event_id),
        names.EVENT_SOURCE: secrets.mask(run.event_source),
        names.EVENT_TYPE: event.type,
    }
    counted = ((names.CRASHES, run.crashes), (names.REPLAY, run.replay), (names.RETRIED, ends))
    attributes |= {name: count for name, count in counted if count}
    if run.window_seq is not None:
        attributes[names.EVENTS] = run.events
    if run.reason:
        attributes[names.REASON] = run.reason
    found = [trace_context.read(each.trace) for each in members[:MOST_LINKS]]
    return Span(
        name=names.RUN.format(flow=run.flow),
        kind="consumer",
        context=own,
        parent=parent,
        started_at=run.queued_at,
        ended_at=max(run.finished_at or run.queued_at, run.queued_at),
        attributes=attributes,
        error=run.error,
        links=[each for each in found if each is not None],
    )
