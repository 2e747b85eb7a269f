"""The operators' HTTP API as one application: the calls, the OpenAPI document and its page.

Every path under `/api` checks the bearer token first, before it reads the body. Every
error is an RFC 9457 problem document. Not here: the calls (verbs in `routes`, reads in a module per
noun), and webhooks, health and metrics (`ingest`, in front of this).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from turnout.service.domain import problems
from turnout.service.domain.errors import TurnoutError
from turnout.service.governance.guesses import Guesses
from turnout.service.governance.tokens import load_or_make_token
from turnout.service.http import approvals, docs
from turnout.service.http.clients import Proxies
from turnout.service.http.exchange import App, Message, Receive, Scope, Send

from . import (
    alerts,
    artefacts,
    dead_letters,
    events,
    flows,
    limits,
    logs,
    pauses,
    pending,
    runs,
    state,
    triggers,
    why,
)
from . import approvals as open_approvals
from .answers import refusal
from .authorization import Served
from .endpoints import verb_router

Handler = Callable[[Request, Exception], Awaitable[Response]]

_READS: Mapping[str, APIRouter] = {
    "runs": runs.router,
    "alerts": alerts.router,
    "dead": dead_letters.router,
    "events": events.router,
    "flows": flows.router,
    "triggers": triggers.router,
    "pauses": pauses.router,
    "pending": pending.router,
    "limits": limits.router,
    "logs": logs.router,
    "why": why.router,
    "next": triggers.next_router,
    "approvals": open_approvals.router,
    "state": state.router,
}
"""The reads, by the first segment of their paths."""

_DESCRIPTION = """Read what happened and act on it: the HTTP face of the turnout command.

Every call under /api carries "Authorization: Bearer TOKEN"; the token is TURNOUT_API_TOKEN, or
the content of the file api-token in the data folder. Lists answer {"items": [...], "next": cursor};
send next as ?cursor= to get the next page. Errors are problem documents (RFC 9457)."""


def create_rest(service: Served) -> FastAPI:
    """Return the API as an ASGI application; raises `SetupError` without a valid token.

    Call it in a thread: it reads files, and importing FastAPI takes about a second.
    """
    app = FastAPI(
        title="turnout",
        version=version("turnout"),
        description=_DESCRIPTION,
        root_path=service.settings.root_path,
        max_body_size=None,  # `read_request` bounds bodies; this 413 would be plain text
        docs_url=None,  # FastAPI's own pages load scripts from a third-party host
        redoc_url=None,
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
        },
    )
    app.state.service = service
    app.state.token = load_or_make_token(service.settings)
    app.state.guesses = Guesses()
    app.state.proxies = Proxies(service.settings.trusted_proxies)
    app.add_middleware(_Nosniff)
    for noun, reads in _READS.items():
        app.include_router(reads)
        app.include_router(verb_router(noun))
    app.include_router(artefacts.router)
    app.include_router(verb_router("cache"))
    app.include_router(approvals.router)
    app.add_api_route("/docs", _docs, include_in_schema=False)
    for kind, handler in _HANDLERS:
        app.add_exception_handler(kind, handler)
    return app


# ---------------------------------------------------------------- the page, and errors


class _Nosniff:
    """Adds `X-Content-Type-Options: nosniff` to every answer."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the application does, with the header added."""

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), _NOSNIFF]
            await send(message)

        await self._app(scope, receive, sent)


_NOSNIFF = (b"x-content-type-options", b"nosniff")


async def _docs(request: Request) -> Response:
    page = docs.render(request.app.openapi(), base_url=str(request.base_url).rstrip("/"))
    return HTMLResponse(page, headers={"Content-Security-Policy": docs.CONTENT_SECURITY_POLICY})


async def _turnout_problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, TurnoutError)
    status, body, headers = problems.of_error(error)
    return Response(body, status, headers, media_type=problems.CONTENT_TYPE)


async def _http_problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, str(error.detail), error.headers)


async def _validation_problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = str(first["loc"][-1])
    return refusal(422, f"{field}: {first['msg']}", field=field)


async def _no_memory(_request: Request, _error: Exception) -> Response:
    return refusal(503, "out of memory; send the request again later")


async def _client_disconnected(_request: Request, _error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it: the client has disconnected


async def _unexpected_problem(_request: Request, _error: Exception) -> Response:
    return refusal(500, "an unexpected error; see the log")


_HANDLERS: tuple[tuple[type[Exception], Handler], ...] = (
    (TurnoutError, _turnout_problem),
    (HTTPException, _http_problem),
    (RequestValidationError, _validation_problem),
    (ClientDisconnect, _client_disconnected),
    (MemoryError, _no_memory),
    (Exception, _unexpected_problem),
)
