"""Calls that pause and resume flows and triggers."""

from __future__ import annotations

from fastapi import Request, Response

from turnout.service.domain.errors import InvalidData
from turnout.service.domain.payload import decode_json
from turnout.service.operate import documents

from .answers import json_answer, page_answer
from .authorization import ServiceOf
from .bodies import read_request
from .router import api_router

router = api_router()


@router.get("/pauses", tags=["flows and triggers"])
async def list_pauses(service: ServiceOf) -> Response:
    """List what is paused, and since when."""
    paused = await service.journal.paused()
    return page_answer(
        [{"name": name, "paused_at": documents.instant(at)} for name, at in sorted(paused.items())]
    )


@router.post("/pauses", tags=["flows and triggers"])
async def pause(service: ServiceOf, request: Request) -> Response:
    """Pause a flow or a trigger: the body is {"name": NAME}.

    A paused flow's events are accepted and its runs wait; a paused trigger accepts no events.
    """
    _, body = await read_request(request, service)
    asked = decode_json(body)
    name = asked.get("name") if isinstance(asked, dict) else None
    if not isinstance(name, str) or not name:
        raise InvalidData('the body is {"name": FLOW or TRIGGER}', field="name")
    return json_answer({"name": await service.operator.pause(name)})


@router.delete("/pauses/{name:path}", tags=["flows and triggers"])
async def resume(service: ServiceOf, name: str) -> Response:
    """Resume a paused flow or trigger."""
    return json_answer({"name": await service.operator.resume(name)})
