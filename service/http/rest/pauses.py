"""Lists pauses."""

from __future__ import annotations

from fastapi import Response

from turnout.service.operate import documents

from .answers import page_answer
from .authorization import ServiceOf
from .router import api_router

router = api_router()


@router.get("/pauses", tags=["flows and triggers"])
async def list_pauses(service: ServiceOf) -> Response:
    """List what is paused: since when, until when, by whom and why; `*` stands for everything."""
    pauses = await service.journal.pauses(now=service.now())
    return page_answer([documents.pause_of(pause) for pause in pauses.values()])
