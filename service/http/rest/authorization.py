"""What every call of the API depends on: the service, and the bearer token.

Not here: which token is valid (`governance.tokens`), the calls themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Protocol

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from turnout.service.domain.run import Run
from turnout.service.domain.waiting import Waiting
from turnout.service.flowcontrol.use import Use
from turnout.service.governance.guesses import Guesses
from turnout.service.governance.links import Links
from turnout.service.governance.tokens import is_token
from turnout.service.http.clients import Proxies, client_network
from turnout.service.http.exchange import by_name
from turnout.service.intake.emitter import TriggerEmitter
from turnout.service.journal.contract import Reads
from turnout.service.operate.operator import Operator
from turnout.service.project import Project
from turnout.service.settings import Settings


class Served(Protocol):
    """The running service as the API uses it; `app` builds it."""

    @property
    def settings(self) -> Settings:
        """The settings."""

    @property
    def project(self) -> Project:
        """The current project; a reload replaces it."""

    @property
    def journal(self) -> Reads:
        """The journal, for reading."""

    @property
    def operator(self) -> Operator:
        """The verbs."""

    @property
    def emitters(self) -> Mapping[str, TriggerEmitter]:
        """The emitter of each trigger, which knows why the trigger is down."""

    def waits_for(self, run: Run) -> Waiting | None:
        """Return what keeps a run from starting, or a running one from going on."""

    def suspended(self) -> Mapping[str, str]:
        """Return for each flow why its open windows do not close now, if so."""

    def uses(self) -> Sequence[Use]:
        """Return how much of each limit, rate and breaker is in use."""

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
    return proxies.client(request.client, by_name(request.headers.raw))


async def require_token(request: Request) -> None:
    """Require exactly one valid bearer token; limits guessing (`governance.guesses`)."""
    client = client_network(_client(request) or "")
    guesses: Guesses = request.app.state.guesses
    if not guesses.admits(client):
        raise HTTPException(429, "too many wrong tokens from this address", {"Retry-After": "1"})
    headers = request.headers.getlist("authorization")
    kind, _, offered = (headers[0] if len(headers) == 1 else "").encode("latin-1").partition(b" ")
    if kind.lower() != b"bearer" or not is_token(offered.strip(), request.app.state.token):
        if offered:
            await guesses.wrong(client)
        raise HTTPException(
            401,
            "send Authorization: Bearer TOKEN; the token is TURNOUT_API_TOKEN, or the "
            "content of the file api-token in the data folder",
            {"WWW-Authenticate": "Bearer"},
        )
