"""Reading the body of a call within the service's limit."""

from __future__ import annotations

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from turnout.service.domain.cloudevents import Headers
from turnout.service.http.exchange import Disconnected, TooLarge, by_name, read_body

from .authorization import Served


async def read_request(request: Request, service: Served) -> tuple[Headers, bytes]:
    """Return headers and body; a body past the limit is refused before it is read whole."""
    headers = by_name(request.headers.raw)
    limit = service.settings.max_body_bytes
    try:
        return headers, await read_body(headers, limit, request.receive)
    except TooLarge:
        raise HTTPException(413, f"a body is at most {limit} bytes here") from None
    except Disconnected:
        raise ClientDisconnect from None
