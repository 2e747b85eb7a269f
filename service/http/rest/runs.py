"""Lists and shows runs."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Response

from turnout.service.operate import documents
from turnout.service.operate.graph import graph_of
from turnout.service.operate.waits import waits_of

from .answers import json_answer, next_cursor, page_answer
from .authorization import ServiceOf
from .parameters import Paged
from .router import api_router

Named = Annotated[list[str], Query(description="ids of runs", min_length=1, max_length=200)]

router = api_router()


@router.get("/runs", tags=["runs"])
async def list_runs(service: ServiceOf, which: Paged) -> Response:
    """List runs, newest first."""
    runs = await service.journal.runs(which)
    waits = await waits_of(service.journal, runs, service.waits_for)
    items = [documents.listed_run(run, waits) for run in runs]
    return page_answer(items, next_cursor(runs, which))


@router.get("/runs/{run_id}", tags=["runs"])
async def show_run(service: ServiceOf, run_id: str) -> Response:
    """Return one run with its event, its steps, its attempts and their log lines.

    A short form of the id will do, as `turnout runs` shows it: 8 or more of its first or last
    characters, if no other id has them.
    """
    return json_answer(await documents.post_mortem(service.journal, run_id, service.waits_for))


@router.get("/runs/{run_id}/graph", tags=["runs"])
async def show_graph(service: ServiceOf, run_id: str) -> Response:
    """Return the steps of a run as they ran: `after` which others each began, in which `branch`.

    Steps of which neither is after the other overlapped. `child` is the graph of a child run; 50
    runs are shown at most.
    """
    return json_answer(await graph_of(service.journal, run_id))


@router.get("/waits", tags=["runs"])
async def show_waits(service: ServiceOf, run: Named) -> Response:
    """Return what each of these runs waits for: a cause, a sentence, and facts.

    A run that waits for nothing, or has ended, is left out.
    """
    runs = [found for run_id in run if (found := await service.journal.run(run_id)) is not None]
    waits = await waits_of(service.journal, runs, service.waits_for)
    return page_answer(
        [{"run": name, **documents.waiting_of(waiting)} for name, waiting in waits.items()]
    )
