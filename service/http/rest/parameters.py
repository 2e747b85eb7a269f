"""The query parameters of lists and bulk actions: filters, page size and cursor."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Request

from turnout.service.domain.errors import InvalidData
from turnout.service.journal.records import Filter
from turnout.service.operate.filters import MAX_LIMIT, page_of, read_filter

from .authorization import ServiceOf

Flow = Annotated[str | None, Query(description="runs of this flow")]
State = Annotated[str | None, Query(description="runs in this state")]
Trigger = Annotated[str | None, Query(description="from this trigger")]
EventId = Annotated[str | None, Query(description="of the event with this id")]
Owner = Annotated[str | None, Query(description="of flows of this owner")]
Tag = Annotated[str | None, Query(description="of flows with this tag")]
Since = Annotated[str | None, Query(description="from this instant on, or an age such as 2h")]
Until = Annotated[str | None, Query(description="before this instant, or an age such as 2h")]
Limit = Annotated[int, Query(description=f"items on a page, 1 to {MAX_LIMIT}")]
Cursor = Annotated[str | None, Query(description="`next` of the page before")]

_FILTERS = ("event", "flow", "owner", "since", "state", "tag", "trigger", "until")


def _chosen(
    request: Request,
    service: ServiceOf,
    flow: Flow = None,
    state: State = None,
    trigger: Trigger = None,
    event: EventId = None,
    owner: Owner = None,
    tag: Tag = None,
    since: Since = None,
    until: Until = None,
) -> Filter:
    # If a misspelt filter were ignored, a bulk action would act on every run.
    for name in request.query_params:
        if name not in _FILTERS and name not in ("limit", "cursor", "dry_run"):
            raise InvalidData(f"no filter {name!r}; there are {', '.join(_FILTERS)}", field=name)
    return read_filter(
        now=service.now(),
        flow=flow,
        state=state,
        trigger=trigger,
        event=event,
        owner=owner,
        tag=tag,
        since=since,
        until=until,
    )


Chosen = Annotated[Filter, Depends(_chosen)]


def _paged(chosen: Chosen, limit: Limit = 100, cursor: Cursor = None) -> Filter:
    return page_of(chosen, limit=limit, cursor=cursor)


Paged = Annotated[Filter, Depends(_paged)]


def require_filter(request: Request) -> None:
    """Refuse a bulk action without a filter, or with a page size or cursor."""
    if not any(request.query_params.get(name) for name in _FILTERS):
        raise InvalidData(f"a bulk action needs at least one filter of {', '.join(_FILTERS)}")
    for name in ("limit", "cursor"):
        if name in request.query_params:
            raise InvalidData("a bulk action takes every matching run", field=name)
