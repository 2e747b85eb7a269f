"""The action `http`: a request to a service outside, as a recorded step.

Not here: one try of it (`http_exchange`), and what it comes to (`http_response`).
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Collection, Coroutine, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypedDict, Unpack

import orjson

from turnout.handlers.task import retry_policy
from turnout.service.domain.errors import SetupError
from turnout.service.domain.retry import RetryPolicy
from turnout.service.domain.retry import retry as retry_of
from turnout.service.domain.task import Task
from turnout.service.domain.units import parse_size, parse_timeout
from turnout.service.domain.unknown import Unknown
from turnout.service.governance.secrets import Secret
from turnout.service.steps.artefacts import Artefact
from turnout.service.steps.context import DIRECT, current
from turnout.service.steps.step import call_task
from turnout.service.steps.unawaited import to_await

from .http_exchange import Request, exchanged
from .http_response import HttpError, HttpResponse

_READS = frozenset({"GET", "HEAD"})
MOST_REDIRECTS = 20
_METHOD = re.compile(r"[A-Z]{1,20}")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


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
    * `params`: more fields for its query; a value may be a secret
    * `json`: the body, sent as JSON
    * `content`: the body as bytes or text, in place of `json`
    * `headers`: more headers; a value may be a secret
    * `timeout`: how long one try may take, the body included
    * `max_bytes`: the most bytes of the answer; with `to` it is the bound of artefacts
    * `retry`: how often 5xx, 429 and no answer are tried again, or a policy `retry(…)`. A
      `Retry-After` is kept, a day at most
    * `allow`: statuses that are answers too, such as `{404}`; usually only 2xx are
    * `redirects`: how many are followed, by GET and HEAD. To another origin a redirect carries
      headers and no body of yours, and none leads from https to http
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
        return int(answer.json()["number"])
    ```
    """
    request = _request(
        method, params, json, content, headers, timeout, max_bytes, allow, redirects,
        untrusted, to,
    )  # fmt: skip
    policy = retry_policy(retry)
    if not isinstance(retry, RetryPolicy):
        policy = replace(_USUAL, count=policy.count)
    task: Task[HttpResponse] = Task(
        function=_send, name=f"http.{method.lower()}", retry=policy, reads=method in _READS
    )
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
    if isinstance(content, Unknown):  # in a dry run
        content = repr(content)
    _refuse_unusable(params, content, headers, allow, redirects)
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


def _refuse_unusable(
    params: object, content: object, headers: object, allow: object, redirects: object
) -> None:
    """Raise `SetupError` for options that cannot be meant."""
    for option, given in (("params", params), ("headers", headers)):
        if given is not None and not isinstance(given, Mapping):
            raise SetupError(f"http({option}={given!r:.80}): write a dict, such as {{'name': 'x'}}")
    if content is not None and not isinstance(content, bytes | str):
        raise SetupError(f"http(content={content!r:.80}): write bytes or text, or json=…")
    if not isinstance(allow, Collection) or not all(isinstance(each, int) for each in allow):
        raise SetupError(f"http(allow={allow!r:.80}): write statuses, such as allow={{404}}")
    if type(redirects) is not int or not 0 <= redirects <= MOST_REDIRECTS:
        raise SetupError(f"http(redirects={redirects!r}): write a number to {MOST_REDIRECTS}")


def _encoded(value: Any) -> bytes:
    try:
        return orjson.dumps(value, default=_unknown_as_text)
    except TypeError as error:
        raise SetupError(f"http(json=…) cannot be written as JSON: {error}") from None


def _unknown_as_text(value: object) -> str:
    """Return what stands for a value in a dry run; raises `TypeError` for any other."""
    if type(value) is Unknown:
        return repr(value)
    raise TypeError(f"Type is not JSON serializable: {type(value).__name__}")


def _header(name: object, value: object) -> str | Secret:
    """Return the value of a header; raises `SetupError` for what is no line of ASCII text."""
    if isinstance(name, str) and _HEADER.fullmatch(name):
        if isinstance(value, Secret):
            return value
        if type(value) is Unknown:
            return repr(value)
        if isinstance(value, str) and value.isascii() and value.isprintable():
            return value
    raise SetupError(f"http(headers=…): {str(name)[:80]!a} is no header of one line of ASCII text")


# ---------------------------------------------------------------- the step


async def _send(url: str | Secret, request: Request) -> HttpResponse:
    """Send the request of a step."""
    return await exchanged(url, request, current().key())


async def _send_in_a_task(url: str | Secret, request: Request) -> HttpResponse:
    """Send a request from within an author's task, which may send several, or from nowhere."""
    context = current()
    if context.run.id == DIRECT:
        return await exchanged(url, request, uuid.uuid4().hex)
    asked = f"{request.method} {url!r} {hashlib.sha256(request.body or b'').hexdigest()}"
    if request.params:
        asked += f" {dict(request.params)!r}"
    return await exchanged(url, request, context.key(asked))
