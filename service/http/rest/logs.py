"""Lists the log lines of attempts that are under way."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Response

from turnout.service.operate.live_logs import live_lines
from turnout.service.operate.names import no_run

from .answers import page_answer
from .authorization import ServiceOf
from .parameters import Flow
from .router import api_router

OfRun = Annotated[str | None, Query(description="of the run with this id")]

router = api_router()


@router.get("/logs", tags=["runs"])
async def list_logs(service: ServiceOf, run: OfRun = None, flow: Flow = None) -> Response:
    """List the log lines so far of attempts that are under way: the last 200 of each, oldest first.

    Those of ended attempts are part of their run: `history[].log`.
    """
    found = None if run is None else await service.journal.run(run)
    if run is not None and found is None:
        raise no_run(run)
    return page_answer(live_lines(run_id=None if found is None else found.id, flow=flow))
