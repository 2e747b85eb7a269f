"""Lists triggers, and what fires or is due next."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Response

from turnout.service.domain.trigger import CalledTrigger, Trigger
from turnout.service.http.ingest import address_of
from turnout.service.operate import documents
from turnout.service.operate.filters import MAX_LIMIT
from turnout.service.operate.upcoming import next_ticks, upcoming

from .answers import page_answer
from .authorization import Served, ServiceOf
from .router import api_router

router = api_router()
next_router = api_router()

Limit = Annotated[int, Query(description=f"1 to {MAX_LIMIT}", ge=1, le=MAX_LIMIT)]


@router.get("/triggers", tags=["flows and triggers"])
async def list_triggers(service: ServiceOf) -> Response:
    """List the triggers, the flows each starts, and whether it is up.

    `address` is where senders call it, `next_at` when it fires next by itself, `last_event_at` when
    its last event was accepted, if that is one of the newest 50,000. `refused` counts the input
    that was not accepted since the service was started, `rejected` all that became no event.
    """
    pauses = await service.journal.pauses(now=service.now())
    last = await service.journal.last_accepted()
    ticks = {
        tick.trigger: tick.at
        for tick in await next_ticks(service.project, service.emitters, service.now())
    }
    items = []
    for name, trigger in sorted(service.project.triggers.items()):
        emitter = service.emitters.get(name)
        status = None if emitter is None else emitter.status
        items.append(
            documents.trigger_of(
                trigger,
                flows=service.project.feeds.get(name, ()),
                problem="not started" if status is None else status.problem,
                lag={} if status is None else status.lags,
                figures={} if status is None else status.figures,
                last_error=None if status is None else status.last_error,
                pause=pauses.get(f"trigger:{name}"),
                address=_address(service, trigger),
                next_at=ticks.get(name),
                last_at=last.get(name),
                rejected={} if status is None else status.rejected,
            )
        )
    return page_answer(items)


@next_router.get("/next", tags=["flows and triggers"])
async def list_next(service: ServiceOf, limit: Limit = 50) -> Response:
    """List what fires or is due next: ticks of timers, and runs that wait for an instant.

    `kind` is tick, start (a run that is scheduled), retry or wait.
    """
    return page_answer(
        await upcoming(
            service.journal,
            await next_ticks(service.project, service.emitters, service.now()),
            limit=limit,
        )
    )


def _address(service: Served, trigger: Trigger) -> str | None:
    if not isinstance(trigger, CalledTrigger):
        return None
    return address_of(service.links.base_url, trigger)
