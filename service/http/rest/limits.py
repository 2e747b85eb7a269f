"""Lists what is in use of limits, rates and breakers."""

from __future__ import annotations

from fastapi import Response

from turnout.service.operate.limits import use_documents

from .answers import page_answer
from .authorization import ServiceOf
from .router import api_router

router = api_router()


@router.get("/limits", tags=["flows and triggers"])
async def list_limits(service: ServiceOf) -> Response:
    """List what is in use of every limit, rate, breaker, priority class and budget.

    `queued` counts the due runs of its flows, whatever they wait for.
    """
    return page_answer(await use_documents(service.journal, service.uses(), service.now()))
