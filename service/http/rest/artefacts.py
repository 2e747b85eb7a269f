"""Gives back what steps have attached to their run.

The content is an author's, or somebody's from outside: a browser saves it and executes nothing.
"""

from __future__ import annotations

import re
from asyncio import to_thread
from collections.abc import Generator, Mapping
from contextlib import closing
from urllib.parse import quote

from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from turnout.service.domain.artefact import INLINE_TYPES, UNKNOWN_TYPE
from turnout.service.domain.errors import JournalError
from turnout.service.journal.records import StoredArtefact
from turnout.service.operate.artefacts import find_artefact

from .authorization import ServiceOf
from .router import api_router

router = api_router()


@router.get(
    "/runs/{run_id}/artefacts/{name}",
    tags=["runs"],
    response_class=Response,
    responses={200: {"content": {UNKNOWN_TYPE: {}}, "description": "The content."}},
)
async def get_artefact(service: ServiceOf, run_id: str, name: str) -> Response:
    """Return the content of an artefact of a run; the run lists them.

    It is an attachment of an unknown type, except for images (PNG, JPEG) and plain text.
    """
    found = await find_artefact(service.journal, run_id, name)
    parts = service.journal.blob_chunks(found.blob)
    first = await to_thread(next, parts)  # what is gone is told before the answer begins
    return _Content(_all(first, parts), headers=_headers(found))


def _all(first: bytes, parts: Generator[bytes, None, None]) -> Generator[bytes, None, None]:
    with closing(parts):
        yield first
        try:
            yield from parts
        except JournalError as error:  # too late for a problem document: the connection is closed
            raise OSError(str(error)) from None


class _Content(StreamingResponse):
    """Sends content, and closes its file when that ends, also where nobody reads on."""

    def __init__(self, parts: Generator[bytes, None, None], headers: Mapping[str, str]) -> None:
        super().__init__(parts, headers=headers)
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._parts.close()


def _headers(artefact: StoredArtefact) -> dict[str, str]:
    is_inline = artefact.type in INLINE_TYPES
    type_ = artefact.type if is_inline else UNKNOWN_TYPE
    # What a header cannot hold is in the second form, which every client prefers.
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", artefact.name)
    names = f"filename=\"{plain}\"; filename*=UTF-8''{quote(artefact.name, safe='')}"
    return {
        "Content-Type": f"{type_}; charset=utf-8" if type_ == "text/plain" else type_,
        "Content-Length": str(artefact.size),
        "Content-Disposition": f"{'inline' if is_inline else 'attachment'}; {names}",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cache-Control": "private, no-store",
    }
