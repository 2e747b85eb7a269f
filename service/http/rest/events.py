"""Calls about events."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response

from turnout.service.domain import cloudevents
from turnout.service.domain.errors import NotFound, Refused
from turnout.service.operate import documents

from .answers import json_answer, next_cursor, page_answer, refusal
from .authorization import ServiceOf
from .bodies import accepts_not_undone, read_request
from .parameters import Paged
from .router import api_router

Source = Annotated[str | None, Query(description="which source, if several sent this id")]

router = api_router()


@router.get("/events", tags=["events"])
async def list_events(service: ServiceOf, which: Paged) -> Response:
    """List events, newest first."""
    events = await service.journal.events(which)
    return page_answer(
        [documents.event_of(stored) for stored in events], next_cursor(events, which)
    )


@router.get("/events/{event_id:path}", tags=["events"])
async def show_event(service: ServiceOf, event_id: str, source: Source = None) -> Response:
    """Return one event with its payload, its runs, and each decision with its reason."""
    found = await service.journal.event(event_id, source=source)
    if not found:
        raise NotFound(f"no event {event_id!r}")
    if source is None and len({stored.event.source for stored in found}) > 1:
        sources = ", ".join(sorted({stored.event.source for stored in found}))
        raise Refused(f"event id {event_id!r} has several sources; add ?source= one of: {sources}")
    return json_answer(documents.event_of(found[0], payload=True))


@router.post("/events/{event_id:path}/replay", tags=["events"])
async def replay_event(
    service: ServiceOf, request: Request, event_id: str, source: Source = None
) -> Response:
    """Run every flow of an event again, as new runs.

    409 while a run of the event is not undone, unless the body is {"not_undone": true}.
    """
    accepts = await accepts_not_undone(request, service)
    return json_answer(
        {"runs": await service.operator.replay(event_id, source, not_undone=accepts)}
    )


@router.post("/events", tags=["events"], status_code=202)
async def emit_event(service: ServiceOf, request: Request) -> Response:
    """Accept a CloudEvent, structured or binary; it starts the flows with `on=event(TYPE)`.

    202 once it is on disk. 409 if its id was used with other attributes or data, 422 if it is not
    a CloudEvent or every flow refuses its data.
    """
    headers, body = await read_request(request, service)
    event = cloudevents.parse(headers, body, now=service.now())
    receipt = await service.operator.emit(event)
    if receipt.conflict:
        raise Refused(
            f"event {event.id!r} from {event.source!r} was sent before with other content"
        )
    if not receipt.stored:
        return refusal(422, "every flow refuses this data", refusals=dict(receipt.refusals))
    return json_answer(documents.receipt_of(receipt), 202)
