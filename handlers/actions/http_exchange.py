"""One try of a request of the action `http`: sent, and its answer taken or refused.

Not here: redirects and vetted addresses (`service.client.outbound`), and further tries (the step).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from turnout.service.client.outbound import (
    Incoming,
    NoAnswer,
    Outgoing,
    Receive,
    RefusedAddress,
    TooLarge,
    exchange,
)
from turnout.service.governance import secrets
from turnout.service.governance.secrets import Secret
from turnout.service.steps.artefacts import Artefact, Attaching
from turnout.service.steps.context import current
from turnout.service.steps.recorded_arguments import ShownShort

from .http_response import HttpError, HttpRefused, HttpResponse

_SHOWN_BYTES = 500
_SHOWN_CHARACTERS = 80
_WRITE_BYTES = 2**20
_UNBOUNDED = 2**62
_WITHOUT_KEY = frozenset({"GET", "HEAD"})
_PART = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,48}"
_MEDIA_TYPE = re.compile(rf"\s*({_PART}/{_PART})\s*(?:;|$)")
"""A type that an artefact may have; what else a server says is no reason to refuse its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(ShownShort):
    """A request as its step is called with it."""

    method: str
    params: Mapping[str, Any] | None
    headers: Mapping[str, str | Secret]
    body: bytes | None
    seconds: float | None
    max_bytes: int
    allow: frozenset[int]
    redirects: int
    untrusted: bool
    to: Artefact | None

    def shown(self) -> str:
        """Return the fields of its query, the beginning of its body, and where its answer goes."""
        shown = [] if not self.params else [f"params={dict(self.params)!r}"]
        if self.body is not None:
            is_json = self.headers.get("Content-Type") == "application/json"
            text = self.body[: 100 * _SHOWN_CHARACTERS].decode("utf-8", "replace")
            shown.append(f"json={text}" if is_json else f"content={text!r}")
        if self.to is not None:
            shown.append(f"to=artefact({self.to.name!r})")
        text = secrets.mask(", ".join(shown))
        return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


async def exchanged(url: str | Secret, request: Request, key: str) -> HttpResponse:
    """Send a request with an idempotency key; raises `HttpError`, `HttpRefused`."""
    address = url.reveal() if isinstance(url, Secret) else url
    is_secret = isinstance(url, Secret)
    shown = f"{request.method} {_shown(address, hides_path=is_secret)}"
    headers = {name: _header(name, value) for name, value in request.headers.items()}
    if request.method not in _WITHOUT_KEY and "idempotency-key" not in map(str.lower, headers):
        headers["Idempotency-Key"] = key
    given = {name.lower() for name in headers}
    headers |= {name: text for name, text in current().trace.items() if name not in given}
    outgoing = Outgoing(
        method=request.method,
        url=address,
        params=request.params
        and {
            name: value.reveal() if isinstance(value, Secret) else value
            for name, value in request.params.items()
        },
        headers=headers,
        body=request.body,
        max_bytes=_UNBOUNDED if request.to is not None else request.max_bytes,
        redirects=request.redirects,
        untrusted=request.untrusted,
    )
    body = _Body(request)
    try:
        async with asyncio.timeout(request.seconds):
            answer = await exchange(outgoing, body.opened)
            await body.done()
    except TimeoutError:
        raise HttpError(f"{shown}: no answer within {request.seconds:g}s") from None
    except NoAnswer as error:
        if body.unwanted is not None:  # its status says more than what came of its body
            raise _refusal(shown, body.unwanted) from None
        raise HttpError(f"{shown}: {secrets.mask(str(error))}") from None
    except RefusedAddress as error:
        raise HttpRefused(f"{shown} is refused: {secrets.mask(str(error))}") from None
    except TooLarge as error:
        if body.unwanted is not None:
            raise _refusal(shown, body.unwanted) from None
        raise HttpRefused(
            f"{shown}: the answer is too large ({error}; max_bytes={request.max_bytes:,}): raise "
            "max_bytes=, or keep it as an artefact, to=artefact(…)"
        ) from None
    except _Unwanted as error:
        raise _refusal(shown, error) from None
    finally:
        body.discard()
    # What is recorded must not hold a secret: the step would fail after its effect.
    location = _shown(answer.url, hides_path=True) if is_secret else answer.url
    return body.response(replace(answer, url=secrets.mask(location)))


def _header(name: str, value: str | Secret) -> str:
    """Return what is sent; raises `HttpRefused` for a secret that no header can hold."""
    if not isinstance(value, Secret):
        return value
    revealed = value.reveal()
    if not (revealed.isascii() and revealed.isprintable()):
        raise HttpRefused(f"header {name!r}: {value!r} is no line of ASCII text")
    return revealed


class _Unwanted(Exception):
    """Ends reading an answer that is none."""

    def __init__(self, status: int, headers: Mapping[str, str], start: bytes) -> None:
        super().__init__()
        self.status = status
        self.headers = headers
        self.start = start


def _refusal(shown: str, error: _Unwanted) -> HttpError:
    status = error.status
    is_temporary = status >= 500 or status == 429
    kind = HttpError if is_temporary else HttpRefused
    text = " ".join(error.start[:_SHOWN_BYTES].decode("utf-8", "replace").split())
    visible = "".join(each if each.isprintable() else "?" for each in text)
    told = f": {secrets.mask(visible)}" if visible else ""
    location = error.headers.get("location")
    if 300 <= status < 400 and location:
        told = f", to {secrets.mask(_shown(location, hides_path=False))}"
    return kind(
        f"{shown} answered {status}{told}",
        status_code=status,
        retry_after=error.headers.get("retry-after") if is_temporary else None,
    )


def _shown(address: str, *, hides_path: bool) -> str:
    """Return an address for messages: without a user name, and without its query."""
    found = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*)://(?:[^/?#]*@)?([^/?#@]*)([^?#]*)", address)
    if found is None:
        return "an address" if hides_path else ascii(address[:80])
    scheme, host, path = found.groups()
    shown = f"{scheme}://{host}{'' if hides_path else path}"
    return "".join(each if each.isprintable() else "?" for each in shown[:200])


async def _in_thread(function: Callable[..., None], *args: Any) -> None:
    """Call what blocks in a thread; ends when that has returned, also where it is cancelled.

    What is written must not be discarded meanwhile: a closed file's number may be another's.
    """
    working = asyncio.get_running_loop().run_in_executor(None, function, *args)
    try:
        await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.gather(working, return_exceptions=True)
        raise


class _Body:
    """Takes the body of an answer: into memory, into an artefact, or the start of a refusal."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._parts = bytearray()
        self._attaching: Attaching | None = None
        self.unwanted: _Unwanted | None = None

    def opened(self, status: int, headers: Mapping[str, str]) -> Receive:
        """Return what takes the body of an answer with this status."""
        self._parts.clear()
        if not (200 <= status < 300 or status in self._request.allow):
            self.unwanted = _Unwanted(status, headers, b"")
            if self._request.method == "HEAD":
                raise self.unwanted
            return self._take_refusal
        self.unwanted = None
        to = self._request.to
        if to is None:
            return self._take
        found = _MEDIA_TYPE.match(headers.get("content-type", ""))
        self._attaching = Attaching(to.name, to.type or (found[1] if found else None))
        return self._take_to_artefact

    async def _take(self, part: bytes) -> None:
        self._parts += part

    async def _take_refusal(self, part: bytes) -> None:
        self._parts += part[:_SHOWN_BYTES]
        if len(self._parts) >= _SHOWN_BYTES:
            self._refuse()

    def _refuse(self) -> None:
        if self.unwanted is not None:
            self.unwanted.start = bytes(self._parts)
            raise self.unwanted

    async def _take_to_artefact(self, part: bytes) -> None:
        self._parts += part
        if len(self._parts) >= _WRITE_BYTES:
            await self._write()

    async def _write(self) -> None:
        assert self._attaching is not None
        data = bytes(self._parts)
        self._parts.clear()
        await _in_thread(self._attaching.write, data)

    async def done(self) -> None:
        """End the body; raises `_Unwanted` for that of a refusal."""
        self._refuse()
        if self._attaching is not None:
            await self._write()
            await _in_thread(self._attaching.done)
            self._attaching = None

    def discard(self) -> None:
        """Delete what was written of a body that did not end."""
        if self._attaching is not None:
            self._attaching.discard()

    def response(self, answer: Incoming) -> HttpResponse:
        """Return the answer as the author gets it."""
        to = self._request.to
        return HttpResponse(
            status_code=answer.status_code,
            headers=answer.headers,
            content=bytes(self._parts),
            url=answer.url,
            artefact=None if to is None else to.name,
        )
