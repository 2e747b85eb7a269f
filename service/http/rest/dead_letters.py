"""Calls about dead letters."""

from __future__ import annotations

from dataclasses import replace

from fastapi import Request, Response

from .answers import json_answer, next_cursor, page_answer
from .authorization import ServiceOf
from .bodies import accepts_not_undone
from .parameters import Paged
from .router import api_router

router = api_router()


@router.get("/dead", tags=["dead letters"])
async def list_dead(service: ServiceOf, which: Paged) -> Response:
    """List dead letters, newest first: runs that failed for good, until replayed or dropped."""
    which = replace(which, dead=True)
    runs = await service.journal.runs(which)
    return page_answer([run.as_dict() for run in runs], next_cursor(runs, which))


@router.post("/dead/{run_id}/replay", tags=["dead letters"])
async def replay_dead(service: ServiceOf, request: Request, run_id: str) -> Response:
    """Run a dead letter's flow again, as a new run of the same event, and drop the dead letter.

    If its undo failed: 409 unless the body is {"not_undone": true}, and it stays a dead letter.
    """
    accepts = await accepts_not_undone(request, service)
    return json_answer({"runs": await service.operator.replay_dead(run_id, not_undone=accepts)})


@router.post("/dead/{run_id}/drop", tags=["dead letters"])
async def drop_dead(service: ServiceOf, run_id: str) -> Response:
    """Take a dead letter off the list; it stays in the journal as a failed run."""
    return json_answer((await service.operator.drop(run_id)).as_dict())
