"""Lists what flows keep between runs."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Response

from turnout.service.operate.filters import MAX_LIMIT
from turnout.service.operate.flow_state import state_of

from .answers import page_answer
from .authorization import ServiceOf
from .router import api_router

OfFlow = Annotated[str | None, Query(description="what this flow keeps")]
UnderKey = Annotated[str | None, Query(description="what is kept under this ordering key")]
Most = Annotated[int, Query(description="how many at most", ge=1, le=MAX_LIMIT)]

router = api_router()


@router.get("/state", tags=["flows and triggers"])
async def list_state(
    service: ServiceOf, flow: OfFlow = None, key: UnderKey = None, limit: Most = 50
) -> Response:
    """List what flows keep between runs (`current().state`), by flow and ordering key.

    The key is empty for a flow without `ordered_by=`.
    """
    found = await service.journal.flow_states(flow, limit, key=key)
    return page_answer([state_of(each) for each in found])
