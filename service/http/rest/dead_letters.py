"""Lists dead letters."""

from __future__ import annotations

from dataclasses import replace

from fastapi import Response

from .answers import next_cursor, page_answer
from .authorization import ServiceOf
from .parameters import Paged
from .router import api_router

router = api_router()


@router.get("/dead", tags=["dead letters"])
async def list_dead(service: ServiceOf, which: Paged) -> Response:
    """List dead letters, newest first: runs that failed for good, until replayed or dropped."""
    which = replace(which, dead=True)
    runs = await service.journal.runs(which)
    return page_answer([run.as_dict() for run in runs], next_cursor(runs, which))
