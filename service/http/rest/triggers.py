"""Lists triggers."""

from __future__ import annotations

from fastapi import Response

from turnout.service.operate import documents

from .answers import page_answer
from .authorization import ServiceOf
from .router import api_router

router = api_router()


@router.get("/triggers", tags=["flows and triggers"])
async def list_triggers(service: ServiceOf) -> Response:
    """List the triggers, the flows each starts, and whether it is up."""
    pauses = await service.journal.pauses(now=service.now())
    items = []
    for name, trigger in sorted(service.project.triggers.items()):
        emitter = service.emitters.get(name)
        status = None if emitter is None else emitter.status
        items.append(
            documents.trigger_of(
                trigger,
                flows=service.project.feeds.get(name, ()),
                problem="not started" if status is None else status.problem,
                lag={} if status is None else status.lags,
                figures={} if status is None else status.figures,
                last_error=None if status is None else status.last_error,
                pause=pauses.get(f"trigger:{name}"),
            )
        )
    return page_answer(items)
