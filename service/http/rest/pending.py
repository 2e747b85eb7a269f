"""Lists and shows open windows."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Response

from turnout.service.operate.windows import MOST_LISTED, window_document, window_documents

from .answers import json_answer, page_answer
from .authorization import ServiceOf
from .router import api_router

OfFlow = Annotated[str | None, Query(description="windows of this flow")]
Most = Annotated[int, Query(description="how many at most", ge=1, le=MOST_LISTED)]

router = api_router()


@router.get("/pending", tags=["windows"])
async def list_pending(service: ServiceOf, flow: OfFlow = None, limit: Most = 50) -> Response:
    """List open windows, the first due first: their events, and when they close.

    `suspended` says why a window stays open past `due_at`: nobody could tell now whether the event
    that it waits for has come.
    """
    suspended = service.suspended()
    return page_answer(await window_documents(service.journal, flow, limit, suspended))


@router.get("/pending/{window_id}", tags=["windows"])
async def show_pending(service: ServiceOf, window_id: str) -> Response:
    """Return one window with its first 100 events, and what is missing of a pattern.

    A short form of the id will do, as `turnout pending` shows it.
    """
    suspended = service.suspended()
    return json_answer(await window_document(service.journal, window_id, suspended))
