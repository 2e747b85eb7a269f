"""Lists and shows runs."""

from __future__ import annotations

from fastapi import Response

from turnout.service.operate import documents

from .answers import json_answer, next_cursor, page_answer
from .authorization import ServiceOf
from .parameters import Paged
from .router import api_router

router = api_router()


@router.get("/runs", tags=["runs"])
async def list_runs(service: ServiceOf, which: Paged) -> Response:
    """List runs, newest first."""
    runs = await service.journal.runs(which)
    return page_answer([run.as_dict() for run in runs], next_cursor(runs, which))


@router.get("/runs/{run_id}", tags=["runs"])
async def show_run(service: ServiceOf, run_id: str) -> Response:
    """Return one run with its event, its steps, its attempts and their log lines.

    The id may be shortened to 8 or more leading characters if they are unique.
    """
    document = await documents.post_mortem(service.journal, run_id)
    document["waits_for"] = service.pools.waits_for(document["id"])
    return json_answer(document)
