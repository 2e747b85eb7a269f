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
    """List what is paused, and since when."""
    paused = await service.journal.paused()
    return page_answer(
        [{"name": name, "paused_at": documents.instant(at)} for name, at in sorted(paused.items())]
    )
