"""`emit`: a run emits an event, as a step.

The step and the event are stored in one transaction, so the event is emitted exactly once, whatever
crashes. Not here: storing the event and starting its runs (`intake.run_host`).
"""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import orjson

from turnout.service.domain import foreign
from turnout.service.domain.errors import TooManyRuns
from turnout.service.domain.event import NO_BODY, Event, mint_id
from turnout.service.domain.event_types import problem_of_emit
from turnout.service.domain.payload import write_json
from turnout.service.domain.retry import RetryPolicy
from turnout.service.domain.run import Fail
from turnout.service.domain.task import Task
from turnout.service.governance import secrets

from . import codec
from .durable_wait import host_of, scope_for
from .recording import durable, store
from .step import StepCall
from .tracing import caused_by, trace_emit
from .unawaited import to_await

EMITTED = "emit"
"""The trigger of events that flows emit."""


def emit(
    event_type: str, data: Any = NO_BODY, *, subject: str | None = None, id: str | None = None
) -> Coroutine[object, None, str]:
    """Emit an event, a recorded step; returns its id.

    `await emit("order.paid", {"id": order.id})` starts the flows with `on=event(TYPE)` and wakes
    the runs that wait for it. The step and the event are stored together, so the event is emitted
    once, whatever crashes. At most 16 events may lead to one another.

    * `event_type`: the type, such as `"order.paid"`: one word, of at most 256 characters
    * `data`: the event's data, stored as JSON; without it the event has no body
    * `subject`: what the event is about, the CloudEvents attribute
    * `id`: an id of your own: the same event emitted again under it starts nothing

    Raises `NotKept` where JSON would lose something (NaN, a masked secret, an excluded field),
    `Fail` for another type, subject or data under an id that was used, `ValueError` for what is no
    type, and `Overloaded` when the queue of a flow it starts (`max_queued=`), or that of all, stays
    full for 10 seconds.

    ```python
    from turnout import emit, event, flow


    @flow(on=event("order.placed"))
    async def place(order: dict[str, str]) -> None:
        await emit("order.paid", {"id": order["id"]}, id=f"paid-{order['id']}")


    @flow(on=event("order.paid"))
    async def ship(order: dict[str, str]) -> str:
        return order["id"]
    ```
    """
    scope = scope_for("emit")
    texts: dict[str, object] = {"event_type": event_type, "subject": subject, "id": id}
    for name, value in texts.items():
        if not isinstance(value, str if name == "event_type" else str | None):
            raise TypeError(f"emit({name}={value!r}): write text, such as str(…)")
        foreign.refuse_unstorable(f"emit({name}=…)", value or "")
        secrets.refuse_live(value, f"emit({name}=…)")
    problem = problem_of_emit(event_type)
    if problem is not None:
        raise ValueError(problem)
    said = (event_type, subject, id) if data is NO_BODY else (event_type, subject, id, data)
    call = StepCall(_EMIT, scope, scope.next_key("emit"), said, {})
    return to_await(_emit(call, event_type, data, subject, id), "emit")


async def _emit(
    call: StepCall, event_type: str, data: Any, subject: str | None, event_id: str | None
) -> str:
    if call.services.dry_run is not None:
        return str(call.services.dry_run.instead(call, "emit", f"emit({event_type!r})"))
    known = call.recorded()
    if known is not None:
        if known.state == "succeeded" and known.result is not None and known.result[:1] == b"{":
            return str(orjson.loads(known.result)["event"])
        return str(call.recall(known))
    run = call.context.claimed
    cause = run.event
    event = Event(
        id=event_id or mint_id(),
        source=f"/flows/{run.flow}",
        type=event_type,
        time=call.services.now(),
        subject=subject,
        datacontenttype="application/json",
        body=NO_BODY if data is NO_BODY else _data(call, data),
        trigger=EMITTED,
        tenant=cause.tenant,
        extensions=caused_by(call.context),
        hops=cause.hops + 1,
        minted=event_id is None,
        specversion="1.0",
    )
    call.begin()
    host = host_of(call)
    record = call.succeeded(event.id)
    again = replace(record, result=write_json({"event": event.id, "duplicate": True}))
    try:
        claim = call.context.writing(call.key)
        await durable(call.context, lambda: host.emit(claim, record, again, event))
    except (Fail, TooManyRuns) as error:
        await store(call.context, call.failed(error))
        raise call.delivered() from None
    trace = call.context.attempt_state.trace
    if trace is not None and trace.own.sampled:
        trace_emit(call.context, trace, record, event_type, event.id)
    return event.id


def _data(call: StepCall, data: Any) -> bytes:
    limit = call.services.settings.max_result_bytes
    return codec.encode_data(data, max_bytes=limit, name=call)


def _str() -> str:
    raise NotImplementedError


_EMIT: Task[str] = Task(function=_str, name="emit", retry=RetryPolicy())
