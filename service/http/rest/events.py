"""Lists and shows events."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Response

from turnout.service.domain.errors import Refused
from turnout.service.operate import documents
from turnout.service.operate.names import no_event

from .answers import json_answer, next_cursor, page_answer
from .authorization import ServiceOf
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
        raise no_event(event_id)
    if source is None and len({stored.event.source for stored in found}) > 1:
        sources = ", ".join(sorted({stored.event.source for stored in found}))
        raise Refused(f"event id {event_id!r} has several sources; add ?source= one of: {sources}")
    return json_answer(documents.event_of(found[0], payload=True))
