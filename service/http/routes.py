"""Every call under `/api`: its words in the query, and its answer.

A page of results is `{"items": [...], "next": cursor}`; the objects are those of `documents`, the
same the CLI prints. Not here: the token in front of them (`authorization`), what the verbs do
(`operator`), the application around the calls (`rest`).
"""

from __future__ import annotations

from asyncio import to_thread
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from turnout.service.domain import cloudevents, problems
from turnout.service.domain.errors import InvalidData, NotFound, Refused
from turnout.service.domain.payload import decode_json
from turnout.service.domain.run import Run
from turnout.service.domain.trigger import Seek
from turnout.service.journal.records import Filter, StoredEvent
from turnout.service.operate import documents
from turnout.service.operate.filters import MAX_LIMIT, page_of, read_filter

from .authorization import Served, ServiceOf, require_token, scheme
from .exchange import Gone, TooLarge, by_name, read_body

router = APIRouter(
    prefix="/api",
    dependencies=[Depends(require_token), Depends(scheme)],
    responses={401: {"description": "No token, or not the right one."}},
)

Flow = Annotated[str | None, Query(description="runs of this flow")]
State = Annotated[str | None, Query(description="runs in this state")]
Trigger = Annotated[str | None, Query(description="from this trigger")]
EventId = Annotated[str | None, Query(description="of the event with this id")]
Since = Annotated[str | None, Query(description="from this instant on, or an age such as 2h")]
Until = Annotated[str | None, Query(description="before this instant, or an age such as 2h")]

Limit = Annotated[int, Query(description=f"items on a page, 1 to {MAX_LIMIT}")]
Cursor = Annotated[str | None, Query(description="`next` of the page before")]

MAX_REASON_CHARACTERS = 2000

_FILTERS = ("event", "flow", "since", "state", "trigger", "until")


def _chosen(
    request: Request,
    service: ServiceOf,
    flow: Flow = None,
    state: State = None,
    trigger: Trigger = None,
    event: EventId = None,
    since: Since = None,
    until: Until = None,
) -> Filter:
    # A misspelt filter that is ignored would make a bulk action hit everything.
    for name in request.query_params:
        if name not in _FILTERS and name not in ("limit", "cursor"):
            raise InvalidData(f"no filter {name!r}; there are {', '.join(_FILTERS)}", field=name)
    return read_filter(
        now=service.now(),
        flow=flow,
        state=state,
        trigger=trigger,
        event=event,
        since=since,
        until=until,
    )


Chosen = Annotated[Filter, Depends(_chosen)]


def _paged(chosen: Chosen, limit: Limit = 100, cursor: Cursor = None) -> Filter:
    return page_of(chosen, limit=limit, cursor=cursor)


Paged = Annotated[Filter, Depends(_paged)]


async def read(request: Request, service: Served) -> tuple[dict[str, list[bytes]], bytes]:
    """Return headers and body; a body past the limit is refused before it is read whole."""
    headers = by_name(request.headers.raw)
    limit = service.settings.max_body_bytes
    try:
        return headers, await read_body(headers, limit, request.receive)
    except TooLarge:
        raise HTTPException(413, f"a body is at most {limit} bytes here") from None
    except Gone:
        raise ClientDisconnect from None


def _json(document: Any, status: int = 200) -> Response:
    return Response(documents.encode(document), status, media_type="application/json")


def _page(items: Sequence[Mapping[str, Any]], following: int | None = None) -> Response:
    return _json({"items": items, "next": None if following is None else str(following)})


def _next(rows: Sequence[Run] | Sequence[StoredEvent], which: Filter) -> int | None:
    return rows[-1].seq if len(rows) == which.limit else None


# ---------------------------------------------------------------- runs


@router.get("/runs", tags=["runs"])
async def list_runs(service: ServiceOf, which: Paged) -> Response:
    """List runs, newest first."""
    runs = await service.journal.runs(which)
    return _page([run.as_dict() for run in runs], _next(runs, which))


@router.get("/runs/{run_id}", tags=["runs"])
async def show_run(service: ServiceOf, run_id: str) -> Response:
    """Return one run with its event, its steps, its attempts and their log lines.

    The id may be cut to its first 8 characters or more, as long as one run only begins so.
    """
    document = await documents.post_mortem(service.journal, run_id)
    document["waits_for"] = service.pools.waits_for(document["id"])
    return _json(document)


@router.post("/runs/{run_id}/retry", tags=["runs"])
async def retry_run(
    service: ServiceOf,
    run_id: str,
    from_step: Annotated[
        str | None, Query(alias="from", description="run again from this step key on")
    ] = None,
) -> Response:
    """Queue a finished run again; it goes on after its last recorded step, or at `from`.

    One whose `undo` is failed goes on with the steps of its undo that are not done, and only those.
    """
    return _json((await service.operator.retry(run_id, from_step)).as_dict())


@router.post("/runs/{run_id}/cancel", tags=["runs"])
async def cancel_run(service: ServiceOf, request: Request, run_id: str) -> Response:
    """End an unfinished run as cancelled, once what it did is undone (`undo`: running).

    The body may be {"reason": WHY, "by": WHO}. 409 when it has ended, or is being undone already.
    """
    said = await _said(request, service, "reason", "by")
    return _json((await service.operator.cancel(run_id, **said)).as_dict())


@router.post("/runs/retry", tags=["runs"])
async def retry_runs(service: ServiceOf, request: Request, which: Chosen) -> Response:
    """Queue every failed or cancelled run that fits the filters again; one filter is required."""
    _require_filter(request)
    runs = await service.operator.retry_all(which)
    return _json({"count": len(runs), "runs": [run.id for run in runs]})


@router.post("/runs/cancel", tags=["runs"])
async def cancel_runs(service: ServiceOf, request: Request, which: Chosen) -> Response:
    """Cancel every unfinished run that fits the filters; one filter is required.

    The body may be {"reason": WHY, "by": WHO}.
    """
    _require_filter(request)
    said = await _said(request, service, "reason", "by")
    runs = await service.operator.cancel_all(which, **said)
    return _json({"count": len(runs), "runs": [run.id for run in runs]})


async def _fields(request: Request, service: Served, *known: str) -> dict[str, Any]:
    """Return the fields of a body that may be left out; refuses those that nobody reads."""
    _, body = await read(request, service)
    fields = decode_json(body) if body else {}
    if not isinstance(fields, dict):
        raise InvalidData(f"the body is an object with the fields {', '.join(known)}")
    for name in fields:
        if name not in known:
            raise InvalidData(f"no field {name!r}; there are {', '.join(known)}", field=name)
    return fields


async def _said(request: Request, service: Served, *known: str) -> dict[str, str]:
    """Return fields of text: why an operator does something, and who that is."""
    said = {"by": "api"} | await _fields(request, service, *known)
    for name, text in said.items():
        if not isinstance(text, str) or len(text) > MAX_REASON_CHARACTERS:
            raise InvalidData(
                f"{name} is text of at most {MAX_REASON_CHARACTERS} characters", field=name
            )
    return said


async def _knows_not_undone(request: Request, service: Served) -> bool:
    """Whether whoever replays says that it knows of effects which are not undone."""
    known = (await _fields(request, service, "not_undone")).get("not_undone", False)
    if not isinstance(known, bool):
        raise InvalidData("not_undone is true or false", field="not_undone")
    return known


def _require_filter(request: Request) -> None:
    if not any(request.query_params.get(name) for name in _FILTERS):
        raise InvalidData(f"a bulk action needs at least one filter of {', '.join(_FILTERS)}")
    for name in ("limit", "cursor"):
        if name in request.query_params:
            raise InvalidData("a bulk action takes every run that fits", field=name)


# ---------------------------------------------------------------- dead letters


@router.get("/dead", tags=["dead letters"])
async def list_dead(service: ServiceOf, which: Paged) -> Response:
    """List dead letters, newest first: runs that failed for good and nobody has dealt with."""
    which = replace(which, dead=True)
    runs = await service.journal.runs(which)
    return _page([run.as_dict() for run in runs], _next(runs, which))


@router.post("/dead/{run_id}/replay", tags=["dead letters"])
async def replay_dead(service: ServiceOf, request: Request, run_id: str) -> Response:
    """Start the flow of a dead letter again from its event, as a new run; the letter goes.

    One whose `undo` is failed stays, and is refused (409) unless the body says
    {"not_undone": true}.
    """
    known = await _knows_not_undone(request, service)
    return _json({"runs": await service.operator.replay_dead(run_id, not_undone=known)})


@router.post("/dead/{run_id}/drop", tags=["dead letters"])
async def drop_dead(service: ServiceOf, run_id: str) -> Response:
    """Take a dead letter off the list; it stays in the journal as a failed run."""
    return _json((await service.operator.drop(run_id)).as_dict())


# ---------------------------------------------------------------- events


@router.get("/events", tags=["events"])
async def list_events(service: ServiceOf, which: Paged) -> Response:
    """List events, newest first."""
    events = await service.journal.events(which)
    return _page([documents.event_of(stored) for stored in events], _next(events, which))


Source = Annotated[str | None, Query(description="when several sources sent this id: which")]


@router.get("/events/{event_id:path}", tags=["events"])
async def show_event(service: ServiceOf, event_id: str, source: Source = None) -> Response:
    """Return one event with its payload, its runs, and each decision with its reason."""
    found = await service.journal.event(event_id, source=source)
    if not found:
        raise NotFound(f"no event {event_id!r}")
    if source is None and len({stored.event.source for stored in found}) > 1:
        sources = ", ".join(sorted({stored.event.source for stored in found}))
        raise Refused(f"event id {event_id!r} has several sources; add ?source= one of: {sources}")
    return _json(documents.event_of(found[0], payload=True))


@router.post("/events/{event_id:path}/replay", tags=["events"])
async def replay_event(
    service: ServiceOf, request: Request, event_id: str, source: Source = None
) -> Response:
    """Start every flow of an event again, as new runs.

    409 while a run of it is not undone, unless the body says {"not_undone": true}.
    """
    known = await _knows_not_undone(request, service)
    return _json({"runs": await service.operator.replay(event_id, source, not_undone=known)})


@router.post("/events", tags=["events"], status_code=202)
async def emit_event(service: ServiceOf, request: Request) -> Response:
    """Accept a CloudEvent, structured or binary; it starts the flows with `on=event(TYPE)`.

    202 once it is on disk. 409 when its id came before with other attributes or data, 422 when it
    is not a CloudEvent or every flow refuses its data.
    """
    headers, body = await read(request, service)
    event = cloudevents.parse(headers, body, now=service.now())
    receipt = await service.operator.emit(event)
    if receipt.conflict:
        raise Refused(f"event {event.id!r} from {event.source!r} came before with other content")
    if not receipt.stored:
        return refusal(422, "every flow refuses this data", refusals=dict(receipt.refusals))
    return _json(documents.receipt_of(receipt), 202)


# ---------------------------------------------------------------- flows and triggers


@router.get("/flows", tags=["flows and triggers"])
async def list_flows(service: ServiceOf) -> Response:
    """List the flows served now and what each declares."""
    paused = await service.journal.paused()
    flows = sorted(service.project.flows.values(), key=lambda flow: flow.name)

    def describe() -> list[dict[str, Any]]:
        return [
            documents.flow_of(flow, paused_at=paused.get(f"flow:{flow.name}")) for flow in flows
        ]

    return _page(await to_thread(describe))  # a flow's code version is read from its file


@router.get("/triggers", tags=["flows and triggers"])
async def list_triggers(service: ServiceOf) -> Response:
    """List the triggers, the flows each feeds, and whether it is watching."""
    paused = await service.journal.paused()
    items = []
    for name, trigger in sorted(service.project.triggers.items()):
        emitter = service.emitters.get(name)
        items.append(
            documents.trigger_of(
                trigger,
                flows=service.project.feeds.get(name, ()),
                problem="not started" if emitter is None else emitter.problem,
                lag={} if emitter is None else emitter.lags,
                figures={} if emitter is None else emitter.figures,
                last_error=None if emitter is None else emitter.last_error,
                paused_at=paused.get(f"trigger:{name}"),
            )
        )
    return _page(items)


@router.post("/triggers/{name:path}/fire", tags=["flows and triggers"], status_code=202)
async def fire_trigger(service: ServiceOf, request: Request, name: str) -> Response:
    """Start the flows of a trigger now, with the body (JSON) as the event's data, or none.

    422, with nothing stored, when no flow takes it.
    """
    _, body = await read(request, service)
    if body:
        decode_json(body)
    return _json(documents.receipt_of(await service.operator.fire(name, body or b"{}")), 202)


@router.post("/triggers/{name:path}/seek", tags=["flows and triggers"])
async def seek_trigger(service: ServiceOf, request: Request, name: str) -> Response:
    """Move where a trigger reads on: the body is {"to": "now", "start", "end", OFFSET or INSTANT}.

    And "partition", "rerun" (going back runs again what was accepted) and "dry_run", which only
    says what would happen.
    """
    _, body = await read(request, service)
    asked = decode_json(body)
    if not isinstance(asked, dict) or not isinstance(asked.get("to"), str):
        raise InvalidData(
            'the body is {"to": "now", "start", "end", OFFSET or INSTANT}', field="to"
        )
    partition = asked.get("partition")
    seek = Seek(
        to=asked["to"],
        partition=None if partition is None else str(partition),
        rerun=asked.get("rerun") is True,
    )
    dry_run = asked.get("dry_run") is True
    plan = await service.operator.seek(name, seek, dry_run=dry_run)
    return _json(documents.seek_of(name, plan, dry_run=dry_run))


@router.get("/pauses", tags=["flows and triggers"])
async def list_pauses(service: ServiceOf) -> Response:
    """List what is paused, and since when."""
    paused = await service.journal.paused()
    return _page(
        [{"name": name, "paused_at": documents.instant(at)} for name, at in sorted(paused.items())]
    )


@router.post("/pauses", tags=["flows and triggers"])
async def pause(service: ServiceOf, request: Request) -> Response:
    """Pause a flow or a trigger: the body is {"name": NAME}.

    A paused flow's events are accepted and its runs wait; a paused trigger accepts nothing.
    """
    _, body = await read(request, service)
    asked = decode_json(body)
    name = asked.get("name") if isinstance(asked, dict) else None
    if not isinstance(name, str) or not name:
        raise InvalidData('the body is {"name": FLOW or TRIGGER}', field="name")
    return _json({"name": await service.operator.pause(name)})


@router.delete("/pauses/{name:path}", tags=["flows and triggers"])
async def resume(service: ServiceOf, name: str) -> Response:
    """Undo a pause."""
    return _json({"name": await service.operator.resume(name)})


@router.delete("/cache", tags=["flows and triggers"])
async def clear_cache(service: ServiceOf, task: str | None = None) -> Response:
    """Forget the kept results of a task with `cache=`, or of all of them."""
    return _json({"cleared": await service.operator.clear_cache(task)})


def refusal(
    status: int, detail: str, headers: Mapping[str, str] | None = None, **members: Any
) -> Response:
    """Answer with a problem document."""
    body = problems.document(status, detail, **members)
    return Response(body, status, headers, media_type=problems.CONTENT_TYPE)
