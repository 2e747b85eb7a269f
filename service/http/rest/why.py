"""Explains events and runs."""

from __future__ import annotations

from fastapi import Response

from turnout.service.operate.why import why

from .answers import page_answer
from .authorization import ServiceOf
from .events import Source
from .router import api_router

router = api_router()


@router.get("/why/{name:path}", tags=["events"])
async def explain(service: ServiceOf, name: str, source: Source = None) -> Response:
    """Explain an event, at each flow, or a run: `name` is the id of either.

    The items are one run, or the events of this id, one for each source. `flows` says what each
    flow did with an event (`answer`: started, not_asked, or the reason of a decision) and, under
    `now`, what it would do with the code that is loaded now, and the values that its condition
    reads. `because` says why a run is in its state.
    """
    return page_answer(
        await why(
            service.journal,
            name,
            source=source,
            project=service.project,
            waits_for=service.waits_for,
        )
    )
