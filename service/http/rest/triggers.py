"""Calls about triggers."""

from __future__ import annotations

from fastapi import Request, Response

from turnout.service.domain.errors import InvalidData
from turnout.service.domain.payload import decode_json
from turnout.service.domain.trigger import Seek
from turnout.service.operate import documents

from .answers import json_answer, page_answer
from .authorization import ServiceOf
from .bodies import read_request
from .router import api_router

router = api_router()


@router.get("/triggers", tags=["flows and triggers"])
async def list_triggers(service: ServiceOf) -> Response:
    """List the triggers, the flows each starts, and whether it is up."""
    paused = await service.journal.paused()
    items = []
    for name, trigger in sorted(service.project.triggers.items()):
        emitter = service.emitters.get(name)
        items.append(
            documents.trigger_of(
                trigger,
                flows=service.project.feeds.get(name, ()),
                problem="not started" if emitter is None else emitter.problem,
                lag={} if emitter is None else emitter.lags,
                figures={} if emitter is None else emitter.figures,
                last_error=None if emitter is None else emitter.last_error,
                paused_at=paused.get(f"trigger:{name}"),
            )
        )
    return page_answer(items)


@router.post("/triggers/{name:path}/fire", tags=["flows and triggers"], status_code=202)
async def fire_trigger(service: ServiceOf, request: Request, name: str) -> Response:
    """Start the flows of a trigger now, with the body (JSON) as the event's data, or none.

    422, with nothing stored, if no flow accepts it.
    """
    _, body = await read_request(request, service)
    if body:
        decode_json(body)
    return json_answer(documents.receipt_of(await service.operator.fire(name, body or b"{}")), 202)


@router.post("/triggers/{name:path}/seek", tags=["flows and triggers"])
async def seek_trigger(service: ServiceOf, request: Request, name: str) -> Response:
    """Move a trigger's position: the body is {"to": "now", "start", "end", OFFSET or INSTANT}.

    Also "partition", "rerun" (allows moving back, which runs accepted records again) and
    "dry_run", which only answers what would happen.
    """
    _, body = await read_request(request, service)
    asked = decode_json(body)
    if not isinstance(asked, dict) or not isinstance(asked.get("to"), str):
        raise InvalidData(
            'the body is {"to": "now", "start", "end", OFFSET or INSTANT}', field="to"
        )
    partition = asked.get("partition")
    seek = Seek(
        to=asked["to"],
        partition=None if partition is None else str(partition),
        rerun=asked.get("rerun") is True,
    )
    dry_run = asked.get("dry_run") is True
    plan = await service.operator.seek(name, seek, dry_run=dry_run)
    return json_answer(documents.seek_of(name, plan, dry_run=dry_run))
