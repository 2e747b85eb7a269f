"""The action `http`: a request to a service outside, as a recorded step.

Not here: the exchange itself, redirects and vetted addresses (`service.client.outbound`).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import uuid
from asyncio import to_thread
from collections.abc import Collection, Coroutine, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypedDict, Unpack

import orjson

from turnout.handlers.task import retry_policy
from turnout.service.client.outbound import (
    Incoming,
    NoAnswer,
    Outgoing,
    Receive,
    RefusedAddress,
    TooLarge,
    exchange,
)
from turnout.service.domain.errors import SetupError, TurnoutError
from turnout.service.domain.payload import read_json
from turnout.service.domain.retry import RetryPolicy
from turnout.service.domain.retry import retry as retry_of
from turnout.service.domain.run import Fail
from turnout.service.domain.task import Task
from turnout.service.domain.units import parse_size, parse_timeout
from turnout.service.governance import secrets
from turnout.service.governance.secrets import Secret
from turnout.service.steps.artefacts import Artefact, Attaching
from turnout.service.steps.context import DIRECT, current
from turnout.service.steps.step import call_task
from turnout.service.steps.unawaited import to_await

_SHOWN_BYTES = 500
_WRITE_BYTES = 2**20
_UNBOUNDED = 2**62
_WITHOUT_KEY = frozenset({"GET", "HEAD"})
_METHOD = re.compile(r"[A-Z]{1,20}")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_MEDIA_TYPE = re.compile(r"\s*([\w.+-]+/[\w.+-]+)\s*(?:;|$)")
_CHARSET = re.compile(r"charset=[\"']?([\w.:-]+)")


class HttpError(TurnoutError):
    """Raised when a request has no answer, or one of 5xx or 429, and its tries are used up.

    One of another status is `HttpRefused`, which is one of these too.

    * `status_code`: the status of the answer, None if there was none
    * `retry_after`: what the answer asks to wait, as its header says

    Raises nothing by itself; not caught, the run is retried as its flow says.

    ```python
    from turnout import HttpError, Retry, flow, http


    @flow
    async def price(item: str) -> int:
        try:
            return (await http.get(f"https://shop.example/{item}")).json()["price"]
        except HttpError as error:
            raise Retry(f"the shop answered {error.status_code}", after="10m") from error
    ```
    """

    status_code: int | None = None
    retry_after: str | None = None


class HttpRefused(HttpError, Fail):
    """Raised at once for an answer that another try would not change, such as 404. It is a `Fail`.

    Also for an address that must not be asked, and for an answer that is too large.

    * `status_code`: the status of the answer, None if there was none

    Raises nothing by itself; not caught, it fails the run for good.

    ```python
    from turnout import HttpRefused, flow, http


    @flow
    async def is_known(customer: str) -> bool:
        try:
            await http.get(f"https://crm.example/customers/{customer}")
        except HttpRefused as error:
            if error.status_code != 404:
                raise
            return False
        return True
    ```
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpResponse:
    """An answer to `http`: recorded exactly, and the same when the run resumes.

    * `status_code`: the status, such as 200
    * `headers`: the headers by name in lower case; several of one name are joined by commas
    * `content`: the body, empty if it went to an artefact
    * `url`: the address that answered, after redirects
    * `artefact`: the name of the artefact that has the body, None if none has

    Raises nothing: it is a value. `json()` raises `ValueError` where the body is no JSON.

    ```python
    from turnout import HttpResponse, flow, http


    @flow
    async def version() -> str:
        answer: HttpResponse = await http.get("https://api.example/version")
        return answer.json()["version"] if answer.status_code == 200 else answer.text
    ```
    """

    status_code: int
    headers: Mapping[str, str]
    content: bytes
    url: str
    artefact: str | None = None

    @property
    def text(self) -> str:
        """The body as text, in the charset of its type or UTF-8; other bytes are replaced."""
        found = _CHARSET.search(self.headers.get("content-type", "").lower())
        try:
            return self.content.decode(found[1] if found else "utf-8", "replace")
        except LookupError:
            return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """Return the body, which is JSON; raises `ValueError` if it is not."""
        return read_json(self.content)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
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


class _Options(TypedDict, total=False):
    params: Mapping[str, Any] | None
    headers: Mapping[str, str | Secret] | None
    timeout: str | timedelta | None
    max_bytes: str | int
    retry: RetryPolicy | int | None
    allow: Collection[int]
    untrusted: bool
    to: Artefact | None


class _Reading(_Options, total=False):
    redirects: int


class _Writing(_Options, total=False):
    json: Any
    content: bytes | str | None


_NOTHING: Any = object()
_USUAL = retry_of(3, delay="1s", max="30s", on=(HttpError, OSError))


def _call(
    method: str,
    url: str | Secret,
    *,
    params: Mapping[str, Any] | None = None,
    json: Any = _NOTHING,
    content: bytes | str | None = None,
    headers: Mapping[str, str | Secret] | None = None,
    timeout: str | timedelta | None = "30s",
    max_bytes: str | int = "10MiB",
    retry: RetryPolicy | int | None = 3,
    allow: Collection[int] = (),
    redirects: int = 5,
    untrusted: bool = False,
    to: Artefact | None = None,
) -> Coroutine[object, None, HttpResponse]:
    """Send a request, a recorded step: `await http.get(url)`, `await http.post(url, json=…)`.

    The answer is recorded, and the request not sent again, over retries and restarts. One that
    was cut off before that is sent again with the same `Idempotency-Key`, which all methods
    but GET and HEAD carry. In a task it is a plain call, a part of the task's own step.

    * `method`: `http("PATCH", url)` is `http.patch(url)`
    * `url`: the address, http or https, or the secret that holds it
    * `params`: more fields for its query
    * `json`: the body, sent as JSON
    * `content`: the body as bytes or text, in place of `json`
    * `headers`: more headers; a value may be a secret
    * `timeout`: how long one try may take, the body included
    * `max_bytes`: the most bytes of the answer; with `to` it is the bound of artefacts
    * `retry`: how often 5xx, 429 and no answer are tried again, or a policy `retry(…)`. A
      `Retry-After` is kept, a day at most
    * `allow`: statuses that are answers too, such as `{404}`; usually only 2xx are
    * `redirects`: how many are followed, by GET and HEAD. To another origin a redirect carries
      no headers of yours, and none leads from https to http
    * `untrusted`: for an address that comes from outside: it must be public, and the connection
      goes to the very address that was looked up and checked
    * `to`: `artefact("dump.zst")` keeps the body as an artefact of the run, of any size

    Raises `HttpError` when the tries are used up, `HttpRefused` at once for any other answer
    than 2xx, for an address that is refused, and for what is too large.

    ```python
    from turnout import flow, http, secret


    @flow
    async def order(item: str) -> int:
        answer = await http.post(
            "https://shop.example/orders",
            json={"item": item},
            headers={"Authorization": secret("SHOP_TOKEN")},
        )
        return answer.json()["number"]
    ```
    """
    request = _request(
        method, params, json, content, headers, timeout, max_bytes, allow, redirects,
        untrusted, to,
    )  # fmt: skip
    policy = retry_policy(retry)
    if not isinstance(retry, RetryPolicy):
        policy = replace(_USUAL, count=policy.count)
    task: Task[HttpResponse] = Task(function=_send, name=f"http.{method.lower()}", retry=policy)
    step = call_task(task, (url, request), {})
    return to_await(_send_in_a_task(url, request), task.words) if step is None else step


class Http:
    """Call it with a method, or use `get`, `head`, `post`, `put`, `patch` and `delete`."""

    __call__ = staticmethod(_call)

    def get(
        self, url: str | Secret, **options: Unpack[_Reading]
    ) -> Coroutine[object, None, HttpResponse]:
        """GET an address; the options are those of `http`."""
        return _call("GET", url, **options)

    def head(
        self, url: str | Secret, **options: Unpack[_Reading]
    ) -> Coroutine[object, None, HttpResponse]:
        """HEAD: the status and the headers alone."""
        return _call("HEAD", url, **options)

    def post(
        self, url: str | Secret, **options: Unpack[_Writing]
    ) -> Coroutine[object, None, HttpResponse]:
        """POST a body, `json=` or `content=`."""
        return _call("POST", url, **options)

    def put(
        self, url: str | Secret, **options: Unpack[_Writing]
    ) -> Coroutine[object, None, HttpResponse]:
        """PUT a body, `json=` or `content=`."""
        return _call("PUT", url, **options)

    def patch(
        self, url: str | Secret, **options: Unpack[_Writing]
    ) -> Coroutine[object, None, HttpResponse]:
        """PATCH with a body, `json=` or `content=`."""
        return _call("PATCH", url, **options)

    def delete(
        self, url: str | Secret, **options: Unpack[_Writing]
    ) -> Coroutine[object, None, HttpResponse]:
        """DELETE what an address names."""
        return _call("DELETE", url, **options)


http = Http()


# ---------------------------------------------------------------- what is asked for


def _request(
    method: str,
    params: Mapping[str, Any] | None,
    json: Any,
    content: bytes | str | None,
    headers: Mapping[str, str | Secret] | None,
    timeout: str | timedelta | None,
    max_bytes: str | int,
    allow: Collection[int],
    redirects: int,
    untrusted: bool,
    to: Artefact | None,
) -> Request:
    if not _METHOD.fullmatch(method):
        raise SetupError(f"http({method!r}, …): write a method such as 'GET'")
    if to is not None and not isinstance(to, Artefact):
        raise SetupError(f"http(to={to!r:.80}): write to=artefact('dump.zst')")
    given = {name: _header(name, value) for name, value in (headers or {}).items()}
    names = {name.lower() for name in given}
    body = content.encode() if isinstance(content, str) else content
    if json is not _NOTHING:
        if content is not None:
            raise SetupError("http(json=…, content=…): one of them is the body")
        body = _encoded(json)
        if "content-type" not in names:
            given["Content-Type"] = "application/json"
    seconds = parse_timeout(timeout)
    return Request(
        method=method,
        params=params,
        headers=given,
        body=body,
        seconds=None if seconds is None else seconds.total_seconds(),
        max_bytes=parse_size(max_bytes),
        allow=frozenset(allow),
        redirects=redirects,
        untrusted=untrusted,
        to=to,
    )


def _encoded(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError as error:
        raise SetupError(f"http(json=…) cannot be written as JSON: {error}") from None


def _header(name: str, value: object) -> str | Secret:
    """Return the value of a header; raises `SetupError` for what is no line of ASCII text."""
    if _HEADER.fullmatch(name):
        if isinstance(value, Secret):
            return value
        if isinstance(value, str) and value.isascii() and value.isprintable():
            return value
    raise SetupError(f"http(headers=…): {name[:80]!a} is no header of one line of ASCII text")


# ---------------------------------------------------------------- sending it


async def _send(url: str | Secret, request: Request) -> HttpResponse:
    """Send the request of a step."""
    return await _exchanged(url, request, current().key())


async def _send_in_a_task(url: str | Secret, request: Request) -> HttpResponse:
    """Send a request from within an author's task, which may send several, or from nowhere."""
    context = current()
    if context.run.id == DIRECT:
        return await _exchanged(url, request, uuid.uuid4().hex)
    body = hashlib.sha256(request.body or b"").hexdigest()
    return await _exchanged(url, request, context.key(f"{request.method} {url!r} {body}"))


async def _exchanged(url: str | Secret, request: Request, key: str) -> HttpResponse:
    address = url.reveal() if isinstance(url, Secret) else url
    shown = f"{request.method} {_shown(address, hides_path=isinstance(url, Secret))}"
    headers = {
        name: value.reveal() if isinstance(value, Secret) else value
        for name, value in request.headers.items()
    }
    if request.method not in _WITHOUT_KEY and "idempotency-key" not in map(str.lower, headers):
        headers["Idempotency-Key"] = key
    outgoing = Outgoing(
        method=request.method,
        url=address,
        params=request.params,
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
        raise HttpError(f"{shown}: {secrets.mask(str(error))}") from None
    except RefusedAddress as error:
        raise HttpRefused(f"{shown} is refused: {secrets.mask(str(error))}") from None
    except TooLarge as error:
        raise HttpRefused(
            f"{shown}: the answer is too large ({error}; max_bytes={request.max_bytes:,}): raise "
            "max_bytes=, or keep it as an artefact, to=artefact(…)"
        ) from None
    except _Unwanted as error:
        raise _refusal(shown, error) from None
    finally:
        body.discard()
    return body.response(answer)


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
    place = error.headers.get("location")
    if 300 <= status < 400 and place:
        told = f", to {secrets.mask(_shown(place, hides_path=False))}"
    made = kind(f"{shown} answered {status}{told}")
    made.status_code = status
    made.retry_after = error.headers.get("retry-after") if is_temporary else None
    return made


def _shown(address: str, *, hides_path: bool) -> str:
    """Return an address for messages: without a user name, and without its query."""
    found = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*)://(?:[^/?#]*@)?([^/?#@]*)([^?#]*)", address)
    if found is None:
        return "an address" if hides_path else ascii(address[:80])
    scheme, host, path = found.groups()
    shown = f"{scheme}://{host}{'' if hides_path else path}"
    return "".join(each if each.isprintable() else "?" for each in shown[:200])


class _Body:
    """Takes the body of an answer: into memory, into an artefact, or the start of a refusal."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._parts = bytearray()
        self._attaching: Attaching | None = None
        self._unwanted: _Unwanted | None = None

    def opened(self, status: int, headers: Mapping[str, str]) -> Receive:
        """Return what takes the body of an answer with this status."""
        self._parts.clear()
        if not (200 <= status < 300 or status in self._request.allow):
            self._unwanted = _Unwanted(status, headers, b"")
            if self._request.method == "HEAD":
                raise self._unwanted
            return self._take_refusal
        self._unwanted = None
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
        if self._unwanted is not None:
            self._unwanted.start = bytes(self._parts)
            raise self._unwanted

    async def _take_to_artefact(self, part: bytes) -> None:
        self._parts += part
        if len(self._parts) >= _WRITE_BYTES:
            await self._write()

    async def _write(self) -> None:
        assert self._attaching is not None
        data = bytes(self._parts)
        self._parts.clear()
        await to_thread(self._attaching.write, data)

    async def done(self) -> None:
        """End the body; raises `_Unwanted` for that of a refusal."""
        self._refuse()
        if self._attaching is not None:
            await self._write()
            await to_thread(self._attaching.done)
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
