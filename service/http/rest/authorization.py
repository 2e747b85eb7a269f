"""In front of every call of the API: the service it is made to, and the token it needs.

Not here: what a right token is (`governance.tokens`), the calls themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Protocol

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from turnout.service.governance.guesses import Guesses
from turnout.service.governance.links import Links
from turnout.service.governance.tokens import is_token
from turnout.service.http.clients import Proxies, household
from turnout.service.http.exchange import by_name
from turnout.service.intake.emitter import TriggerEmitter
from turnout.service.journal.contract import JournalReader
from turnout.service.operate.operator import Operator
from turnout.service.pools import Pools
from turnout.service.project import Project
from turnout.service.settings import Settings


class Served(Protocol):
    """What the API stands on: the running service, as `app` builds it."""

    @property
    def settings(self) -> Settings:
        """The operator's choices."""

    @property
    def project(self) -> Project:
        """The project served now; a reload replaces it."""

    @property
    def journal(self) -> JournalReader:
        """Where everything that happened is read."""

    @property
    def operator(self) -> Operator:
        """The verbs."""

    @property
    def emitters(self) -> Mapping[str, TriggerEmitter]:
        """The way in of each trigger, which knows why it is not watching."""

    @property
    def pools(self) -> Pools:
        """Where functions run, which knows what waits for a place."""

    @property
    def links(self) -> Links:
        """The signed links of approvals."""

    @property
    def now(self) -> Callable[[], datetime]:
        """The wall clock."""


def _service(request: Request) -> Served:
    service: Served = request.app.state.service
    return service


ServiceOf = Annotated[Served, Depends(_service)]

scheme = HTTPBearer(auto_error=False, description="TURNOUT_API_TOKEN, or DATA/api-token")


def _client(request: Request) -> str | None:
    proxies: Proxies = request.app.state.proxies
    peer = request.client
    return proxies.client(None if peer is None else peer.host, by_name(request.headers.raw))


async def require_token(request: Request) -> None:
    """Let nobody by without the bearer token, once; who guesses waits (`governance.guesses`)."""
    client = household(_client(request) or "")
    guesses: Guesses = request.app.state.guesses
    if not guesses.admits(client):
        raise HTTPException(429, "too many wrong tokens come from here", {"Retry-After": "1"})
    headers = request.headers.getlist("authorization")
    kind, _, offered = (headers[0] if len(headers) == 1 else "").encode("latin-1").partition(b" ")
    if kind.lower() != b"bearer" or not is_token(offered.strip(), request.app.state.token):
        if offered:
            await guesses.wrong(client)
        raise HTTPException(
            401,
            "send Authorization: Bearer TOKEN; the token is TURNOUT_API_TOKEN, or stands in the "
            "file api-token of the data folder",
            {"WWW-Authenticate": "Bearer"},
        )
