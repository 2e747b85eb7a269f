"""The bodies of calls: bounded, JSON, and without unknown fields."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from turnout.service.domain.errors import InvalidData
from turnout.service.domain.payload import decode_json
from turnout.service.http.exchange import Disconnected, TooLarge, by_name, read_body

from .authorization import Served

MAX_REASON_CHARACTERS = 2000


async def read_request(request: Request, service: Served) -> tuple[dict[str, list[bytes]], bytes]:
    """Return headers and body; a body past the limit is refused before it is read whole."""
    headers = by_name(request.headers.raw)
    limit = service.settings.max_body_bytes
    try:
        return headers, await read_body(headers, limit, request.receive)
    except TooLarge:
        raise HTTPException(413, f"a body is at most {limit} bytes here") from None
    except Disconnected:
        raise ClientDisconnect from None


async def _fields(request: Request, service: Served, *known: str) -> dict[str, Any]:
    """Return the fields of an optional body; refuses unknown fields."""
    _, body = await read_request(request, service)
    fields = decode_json(body) if body else {}
    if not isinstance(fields, dict):
        raise InvalidData(f"the body is an object with the fields {', '.join(known)}")
    for name in fields:
        if name not in known:
            raise InvalidData(f"no field {name!r}; there are {', '.join(known)}", field=name)
    return fields


async def text_fields(request: Request, service: Served, *known: str) -> dict[str, str]:
    """Return the text fields of a body, such as `reason` and `by`."""
    texts = {"by": "api"} | await _fields(request, service, *known)
    for name, text in texts.items():
        if not isinstance(text, str) or len(text) > MAX_REASON_CHARACTERS:
            raise InvalidData(
                f"{name} is text of at most {MAX_REASON_CHARACTERS} characters", field=name
            )
    return texts


async def accepts_not_undone(request: Request, service: Served) -> bool:
    """Whether the caller accepts a replay of runs that are not undone."""
    accepts = (await _fields(request, service, "not_undone")).get("not_undone", False)
    if not isinstance(accepts, bool):
        raise InvalidData("not_undone is true or false", field="not_undone")
    return accepts
