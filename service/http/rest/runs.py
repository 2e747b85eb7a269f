"""Calls about runs."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response

from turnout.service.operate import documents

from .answers import json_answer, next_cursor, page_answer
from .authorization import ServiceOf
from .bodies import text_fields
from .parameters import Chosen, Paged, require_filter
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


@router.post("/runs/{run_id}/retry", tags=["runs"])
async def retry_run(
    service: ServiceOf,
    run_id: str,
    from_step: Annotated[
        str | None, Query(alias="from", description="run again from this step key on")
    ] = None,
) -> Response:
    """Queue a finished run again; it resumes after its last recorded step, or at `from`.

    If its undo failed, only the remaining steps of the undo run.
    """
    return json_answer((await service.operator.retry(run_id, from_step)).as_dict())


@router.post("/runs/{run_id}/cancel", tags=["runs"])
async def cancel_run(service: ServiceOf, request: Request, run_id: str) -> Response:
    """Cancel an unfinished run and undo what it did; `undo` is running until that is over.

    The body may be {"reason": WHY, "by": WHO}. 409 if it has ended or is already being undone.
    """
    texts = await text_fields(request, service, "reason", "by")
    return json_answer((await service.operator.cancel(run_id, **texts)).as_dict())


@router.post("/runs/retry", tags=["runs"])
async def retry_runs(service: ServiceOf, request: Request, which: Chosen) -> Response:
    """Queue every matching failed or cancelled run again; one filter is required."""
    require_filter(request)
    runs = await service.operator.retry_all(which)
    return json_answer({"count": len(runs), "runs": [run.id for run in runs]})


@router.post("/runs/cancel", tags=["runs"])
async def cancel_runs(service: ServiceOf, request: Request, which: Chosen) -> Response:
    """Cancel every matching unfinished run; one filter is required.

    The body may be {"reason": WHY, "by": WHO}.
    """
    require_filter(request)
    texts = await text_fields(request, service, "reason", "by")
    runs = await service.operator.cancel_all(which, **texts)
    return json_answer({"count": len(runs), "runs": [run.id for run in runs]})
