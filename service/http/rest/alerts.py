"""Lists alerts."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Query, Response

from turnout.service.operate.alerts import alert_documents

from .answers import page_answer
from .authorization import ServiceOf
from .parameters import Owner, Tag
from .router import api_router

OfFlow = Annotated[str | None, Query(description="alerts of this flow")]
Which = Annotated[Literal["open", "all"], Query(description="also those that are over: all")]

router = api_router()


@router.get("/alerts", tags=["alerts"])
async def list_alerts(
    service: ServiceOf,
    flow: OfFlow = None,
    owner: Owner = None,
    tag: Tag = None,
    state: Which = "open",
) -> Response:
    """List alerts, the newest first: what failed or was missed, how often, and who was told when.

    1,000 are read at most.
    """
    return page_answer(
        await alert_documents(
            service.journal,
            flow=flow,
            owner=owner,
            tag=tag,
            ended=state == "all",
            now=service.now(),
        )
    )
