"""Lists the approvals that wait for an answer."""

from __future__ import annotations

from datetime import datetime

from fastapi import Response

from turnout.service.journal.records import OpenApproval
from turnout.service.operate.upcoming import approval_of
from turnout.service.steps.approval import LINK_LIFE

from .answers import page_answer
from .authorization import Served, ServiceOf
from .router import api_router
from .triggers import Limit

router = api_router()


@router.get("/approvals", tags=["runs"])
async def list_approvals(service: ServiceOf, limit: Limit = 100) -> Response:
    """List the approvals that wait for an answer, with the link of the page that takes it.

    Whoever has a link can answer: hand it on to nobody else.
    """
    found = await service.journal.open_approvals(limit)
    return page_answer([approval_of(each, _link(service, each)) for each in found])


def _link(service: Served, approval: OpenApproval) -> str:
    until = approval.note.get("until")
    asked = approval.asked_at
    ends = asked + LINK_LIFE if until is None else datetime.fromisoformat(until)
    return service.links.address(approval.run_id, approval.key, ends, asked)
