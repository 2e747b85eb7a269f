"""HTTP calls that turnout makes; only this module imports httpx, at the first call.

`connect` opens a client of a turnout service and turns its problem documents back into errors, so
that a command behaves the same with a service and on the journal. `post` calls any other service,
for the actions that authors use.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turnout.service.domain.errors import (
    Expired,
    InvalidData,
    NotFound,
    Overloaded,
    Refused,
    SetupError,
    TurnoutError,
)

if TYPE_CHECKING:
    import httpx

TIMEOUT_SECONDS = 60
READY_SECONDS = 10
"""How long a service that is well may take to say so."""


class Unavailable(TurnoutError):
    """Raised when no service answers, or when its answer is not one of turnout's.

    `retry_after` is what the answer asks to wait, as its header says.
    """

    def __init__(self, message: str, *, retry_after: str | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Answer:
    """What another service has answered: the status, and the header `Retry-After`."""

    status: int
    retry_after: str | None


class Client:
    """Calls one service with its bearer token; made by `connect`."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | Sequence[str]] | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
    ) -> Any:
        """Return the decoded answer; raises the service's refusal, or `Unavailable`."""
        headers = {} if body is None else {"Content-Type": content_type}
        with self._reaching():
            answer = await self._http.request(
                method, path, params=params, content=body, headers=headers
            )
        if answer.is_success:
            return answer.json()
        raise _error_of(answer)

    async def readiness(self) -> Any:
        """Return what `/readyz` says, ready or not; raises `Unavailable`, soon."""
        with self._reaching():
            answer = await self._http.get("/readyz", timeout=READY_SECONDS)
        return answer.json()

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.HTTPError as error:
            raise Unavailable(
                f"no answer from {self._http.base_url}: {str(error) or type(error).__name__}"
            ) from None


@asynccontextmanager
async def connect(
    url: str, token: str | None, *, certificate: Path | None = None
) -> AsyncIterator[Client]:
    """Open a client for the service at `url`; only `certificate` is trusted, if given.

    Without a token it may only ask for readiness.
    """
    import ssl

    import httpx

    trust: ssl.SSLContext | bool = True
    if certificate is not None:
        trust = ssl.create_default_context(cafile=certificate)
        trust.check_hostname = False  # the address may be 0.0.0.0; the certificate is pinned
    async with httpx.AsyncClient(
        base_url=url,
        headers={} if token is None else {"Authorization": f"Bearer {token}"},
        timeout=TIMEOUT_SECONDS,
        verify=trust,
        trust_env=False,  # no proxy between a command and its service
    ) as http:
        yield Client(http)


async def post(url: str, body: bytes, *, headers: Mapping[str, str]) -> Answer:
    """Post to another service and return its answer; raises `Unavailable` without one.

    The address may be a secret (a chat webhook), so errors show only its host. Redirects are not
    followed.
    """
    import httpx

    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every address
    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as http:
            answer = await http.post(url, content=body, headers=dict(headers))
    except httpx.InvalidURL:
        raise SetupError("the address is not a URL such as https://example.com/path") from None
    except httpx.HTTPError as error:
        host = httpx.URL(url).host
        raise Unavailable(f"no answer from {host}: {type(error).__name__}") from None
    return Answer(answer.status_code, answer.headers.get("retry-after"))


def _error_of(answer: httpx.Response) -> TurnoutError:
    try:
        problem = answer.json()
        detail = str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        return Unavailable(
            f"{answer.request.url} answered {answer.status_code}, not as turnout does"
        )
    match answer.status_code:
        case 401:
            return SetupError(
                "the service refuses the API token; set TURNOUT_API_TOKEN to the one it was "
                "started with, or unset it to use the one in the data folder"
            )
        case 404:
            return NotFound(detail)
        case 409:
            return Refused(detail)
        case 400 | 413 | 415 | 422:
            refusals = problem.get("refusals") or {}
            reasons = "".join(f"; {flow}: {why}" for flow, why in refusals.items())
            return InvalidData(detail + reasons, field=problem.get("field"))
        case 410:
            return Expired(detail)
        case 429 | 503:
            return Overloaded(detail)
    return Unavailable(f"the service answered {answer.status_code}: {detail}")
