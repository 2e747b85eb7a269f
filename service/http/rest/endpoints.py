"""The calls that are verbs: an endpoint for each row of `routes`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import Parameter as Argument
from inspect import Signature
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from turnout.service.operate.documents import plan_of

from .answers import json_answer
from .authorization import Served, ServiceOf
from .bodies import Received
from .parameters import Chosen, require_filter
from .request_body import read_request
from .router import api_router
from .routes import DRY_RUN, FILTERED, ROUTES, Route


def verb_router(first: str) -> APIRouter:
    """Return a router for the verbs whose path begins with this segment."""
    router = api_router()
    for route in ROUTES:
        if route.path.split("/")[1] == first:
            router.add_api_route(
                route.path,
                _endpoint(route),
                methods=[route.method],
                name=route.name,
                tags=[route.tag],
                description=route.text,
                status_code=route.status,
            )
    return router


def _endpoint(route: Route[Any]) -> Callable[..., Awaitable[Response]]:
    async def do(service: Served, request: Request, only_plan: bool, **fields: Any) -> Response:
        if route.filtered:
            require_filter(request)
        if route.body is not None:
            headers, content = await read_request(request, service)
            fields |= route.body.read(Received(content, headers, service.now()))
        verb = route.verb(**fields)
        if only_plan:
            return json_answer(plan_of(await service.operator.plan(verb)))
        done = await service.operator.do(verb)
        return json_answer(route.document(verb, done), route.status)

    do.__signature__ = _signature(route)  # type: ignore[attr-defined]  # FastAPI reads it
    return do


def _signature(route: Route[Any]) -> Signature:
    """Return the arguments of a route's endpoint as FastAPI fills them."""
    arguments: dict[str, Any] = {"service": ServiceOf, "request": Request}
    arguments |= dict.fromkeys(route.in_path, str)
    if route.filtered:
        arguments[FILTERED] = Chosen
    required = [
        Argument(name, Argument.KEYWORD_ONLY, annotation=kind) for name, kind in arguments.items()
    ]
    optional = [
        Argument(
            each.field,
            Argument.KEYWORD_ONLY,
            default=each.default,
            annotation=Annotated[
                bool if each.default is False else str | None if each.default is None else str,
                Query(
                    alias=each.name if each.name != each.field else None,
                    description=each.description,
                ),
            ],
        )
        for each in route.query
    ]
    return Signature([*required, *optional, _ONLY_PLAN], return_annotation=Response)


_ONLY_PLAN = Argument(
    "only_plan",
    Argument.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool, Query(alias=DRY_RUN, description="only answer what would be done, a sentence each")
    ],
)
