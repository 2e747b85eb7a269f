"""Lists flows."""

from __future__ import annotations

from asyncio import to_thread
from typing import Any

from fastapi import Response

from turnout.service.operate import documents

from .answers import page_answer
from .authorization import ServiceOf
from .parameters import Owner, Tag
from .router import api_router

router = api_router()


@router.get("/flows", tags=["flows and triggers"])
async def list_flows(service: ServiceOf, owner: Owner = None, tag: Tag = None) -> Response:
    """List the flows and what each declares."""
    pauses = await service.journal.pauses(now=service.now())
    asked = (
        flow
        for flow in service.project.flows.values()
        if owner in (None, flow.owner) and (tag is None or tag in flow.tags)
    )
    flows = sorted(asked, key=lambda flow: flow.name)

    def describe() -> list[dict[str, Any]]:
        return [documents.flow_of(flow, pauses=pauses) for flow in flows]

    return page_answer(await to_thread(describe))  # a flow's code version is read from its file
