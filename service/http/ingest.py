"""The service's ASGI application: webhooks, health and metrics, in front of the operators' API.

`/hooks/**` reaches the triggers, `/healthz`, `/readyz` and `/metrics` are answered here, and
everything else goes to the REST application, which is loaded at the first request for it. A body
is read only for a request that a trigger may take, and never past its limit (`exchange`). Not here:
what a body means (the triggers), deadlines and connections (`server`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from ipaddress import ip_address
from math import inf
from time import perf_counter
from typing import Protocol, runtime_checkable
from urllib.parse import quote, unquote_to_bytes

import orjson

from turnout.service.domain.errors import SetupError
from turnout.service.domain.trigger import CalledTrigger, Emitter, Inbound, Reply, Trigger
from turnout.service.domain.units import utc_now
from turnout.service.settings import Settings
from turnout.service.telemetry.meters import Histogram
from turnout.service.telemetry.metrics import CONTENT_TYPE, Metrics

from .clients import Proxies
from .exchange import (
    App,
    Disconnected,
    Message,
    Receive,
    Scope,
    Send,
    TooLarge,
    answer,
    by_name,
    problem,
    read_body,
    refuse,
)

PREFIX = "/hooks"
_HOOKS = b"/hooks/"
_API_EVENTS = b"/api/events"
_OF_REST = (b"/api/", b"/approvals/", b"/docs")


@runtime_checkable
class Webhook(CalledTrigger, Protocol):
    """A called trigger that declares its methods and how requests are verified."""

    @property
    def methods(self) -> Sequence[str]:
        """The HTTP methods it takes."""

    @property
    def verified(self) -> bool | None:
        """Whether requests prove who sent them; None when the author did not say."""

    def unlock(self) -> None:
        """Reveal its secrets; raises `SetupError` for one that is missing or empty."""


def check_exposure(triggers: Iterable[Trigger], host: str) -> None:
    """Raise `SetupError` if an unverified webhook would listen beyond this machine."""
    if _is_loopback(host):
        return
    for trigger in triggers:
        if isinstance(trigger, CalledTrigger) and getattr(trigger, "verified", None) is None:
            raise SetupError(
                f"{trigger.name} takes requests from anyone, and the service listens on {host!r}; "
                'verify them: verify="github", secret=secret("NAME"), or write verify="none"'
            )


def unlock(triggers: Iterable[Trigger]) -> None:
    """Reveal the secrets of webhooks; raises `SetupError` for one that is missing or empty."""
    for trigger in triggers:
        if isinstance(trigger, Webhook):
            trigger.unlock()


def address_of(base_url: str, trigger: CalledTrigger) -> str:
    """Return where senders call a trigger of the service at `base_url`."""
    return f"{base_url}{PREFIX}{trigger.route}"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Route:
    """One called trigger, with what is computed before a request comes."""

    __slots__ = ("allow", "answered", "emit", "limit", "methods", "parts", "path", "receive")

    def __init__(
        self, trigger: CalledTrigger, emit: Emitter, answered: Histogram, max_body_bytes: int
    ) -> None:
        unlock([trigger])
        self.answered = answered
        self.path = PREFIX + trigger.route
        self.receive = trigger.receive
        self.emit = emit
        self.methods = frozenset(getattr(trigger, "methods", ("POST",)))
        self.allow = ", ".join(sorted(self.methods | {"OPTIONS"}))
        self.limit = trigger.max_body_bytes or max_body_bytes
        self.parts = tuple(trigger.route[1:].split("/"))

    def match(self, parts: Sequence[str]) -> dict[str, str] | None:
        """Return the path's parameters, or None if the path does not match."""
        if len(parts) != len(self.parts):
            return None
        params = {}
        for pattern, part in zip(self.parts, parts, strict=True):
            if pattern.startswith("{"):
                if not _is_plain(part):
                    return None
                params[pattern[1:-1]] = part
            elif pattern != part:
                return None
        return params


def _is_plain(part: str) -> bool:
    """Whether a parameter is safe in a file name and in a log line."""
    return part.isprintable() and not {"", ".", ".."} & set(part.split("/"))


class Ingest:
    """The service's ASGI application."""

    def __init__(
        self,
        routes: Sequence[tuple[CalledTrigger, Emitter]],
        *,
        settings: Settings,
        metrics: Metrics,
        problems: Callable[[], Sequence[str]],
        warnings: Callable[[], Sequence[str]] = tuple,
        rest: Callable[[], Awaitable[App]],
        count: Callable[[], Awaitable[None]] | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._reasons = problems
        self._warnings = warnings
        self._load_rest = rest
        self._count = count
        self._rest: App | None = None
        self._rest_lock = asyncio.Lock()
        self._now = now
        self._proxies = Proxies(settings.trusted_proxies)
        self._pages: Mapping[bytes, Callable[[], Reply]] = {
            b"/healthz": _alive,
            b"/readyz": self._ready,
            b"/metrics": self._render,
        }
        self.replace(routes)

    def replace(self, routes: Sequence[tuple[CalledTrigger, Emitter]]) -> None:
        """Replace the routes; raises `SetupError` and changes nothing if one is invalid."""
        made = [
            Route(
                trigger,
                emit,
                self._metrics.answer_seconds.labels(trigger.name),
                self._settings.max_body_bytes,
            )
            for trigger, emit in routes
        ]
        self._unknown = _UNKNOWN
        # Fixed parts before parameters, so that /t/all wins over /t/{tenant}.
        self._routes = sorted(made, key=lambda route: [part[:1] == "{" for part in route.parts])
        self._static = {route.path.encode(): route for route in made if "{" not in route.path}

    def not_replaced(self) -> None:
        """Say 503 for unknown webhooks until the next `replace`: a broken flow file may have them.

        A sender that is told 404 gives its event up.
        """
        self._unknown = _NOT_LOADED

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI 3)."""
        if scope["type"] != "http":
            return
        raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
        path: str | None = None
        params: Mapping[str, str] = _NO_PARAMS
        route = self._static.get(raw_path)
        if route is None:
            if not raw_path.startswith(_HOOKS):
                await self._page(raw_path, scope, receive, send)
                return
            route, params, path = self._find(raw_path)
            if route is None:
                await refuse(self._unknown, scope, receive, send)
                return
        if scope["method"] not in route.methods:
            await refuse(_not_allowed(route, scope), scope, receive, send)
            return
        headers = by_name(scope["headers"])
        try:
            body = await read_body(headers, route.limit, receive)
        except TooLarge:
            route.emit.reject("too_large")
            await refuse(_too_large(route), scope, receive, send)
            return
        except Disconnected:
            return
        began = perf_counter()
        reply = await route.receive(
            Inbound(
                method=scope["method"],
                path=path or route.path,
                params=params,
                query=scope["query_string"],
                headers=headers,
                body=body,
                client=self._proxies.client(scope.get("client"), headers),
                received_at=self._now(),
            ),
            route.emit,
        )
        await answer(reply, send)
        if reply.status == 202 and not reply.waited:
            route.answered.observe(perf_counter() - began)

    # ---- routes

    def _find(self, raw_path: bytes) -> tuple[Route | None, Mapping[str, str], str]:
        """Match a path part by part: a `%2F` is inside a part, never between two.

        The path is returned in its canonical form. It becomes the event's source, and a delivery
        must not count as new because its sender wrote `%61` for `a`.
        """
        try:
            parts = [unquote_to_bytes(part).decode() for part in raw_path.split(b"/")[2:]]
        except UnicodeDecodeError:
            return None, _NO_PARAMS, ""
        for route in self._routes:
            params = route.match(parts)
            if params is not None:
                path = "/".join([PREFIX, *(quote(part, safe="") for part in parts)])
                return route, params, path
        return None, _NO_PARAMS, ""

    def _meant(self, raw_path: bytes) -> str | None:
        """Return the path of the webhook that a path without `/hooks` names, such as `/github`."""
        if raw_path.startswith(_OF_REST):
            return None
        _, _, rest = raw_path[1:].partition(b"/")
        for tail in (raw_path[1:], rest):  # `/webhooks/github` too
            route, _, path = self._find(_HOOKS + tail)
            if route is not None:
                return path
        return None

    # ---- everything but webhooks

    async def _page(self, path: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        page = self._pages.get(path)
        if page is None and (meant := self._meant(path)) is not None:
            hint = f"no page has this path; did you mean {meant}?"
            await refuse(problem(404, hint), scope, receive, send)
        elif page is None:
            app = await self.rest()
            if scope["method"] == "HEAD":  # a GET to the routes; the connection sends no body
                scope = {**scope, "method": "GET"}
            if path == _API_EVENTS and scope["method"] == "POST":
                receive, send = _timed(receive, send, self._metrics.answer_seconds.labels("api"))
            await app(self._under_root(scope), receive, send)
        elif scope["method"] in ("GET", "HEAD"):
            if path == b"/metrics" and self._count is not None:
                await self._count()
            await answer(page(), send, with_body=scope["method"] == "GET")
        else:
            await refuse(_PAGE_METHODS, scope, receive, send)

    async def rest(self) -> App:
        """Return the REST application, loading it at the first call."""
        if self._rest is None:
            async with self._rest_lock:
                if self._rest is None:
                    self._rest = await self._load_rest()
        return self._rest

    def _under_root(self, scope: Scope) -> Scope:
        """Add the prefix that a proxy stripped, as ASGI requires."""
        root = self._settings.root_path.rstrip("/")
        if not root:
            return scope
        raw_path = root.encode() + (scope.get("raw_path") or scope["path"].encode())
        return {**scope, "root_path": root, "path": root + scope["path"], "raw_path": raw_path}

    def _ready(self) -> Reply:
        reasons = list(self._reasons())
        status = 503 if reasons else 200
        document = {"ready": not reasons, "reasons": reasons, "warnings": list(self._warnings())}
        return Reply(status=status, body=orjson.dumps(document))

    def _render(self) -> Reply:
        return Reply(status=200, body=self._metrics.render(), content_type=CONTENT_TYPE)


def _timed(receive: Receive, send: Send, answered: Histogram) -> tuple[Receive, Send]:
    """Observe how long after its body was read a request is answered, if it is accepted."""
    began = inf

    async def read() -> Message:
        nonlocal began
        message = await receive()
        began = perf_counter()
        return message

    async def write(message: Message) -> None:
        await send(message)
        if message.get("status") == 202:
            answered.observe(max(perf_counter() - began, 0))

    return read, write


_NO_PARAMS: Mapping[str, str] = {}


def _alive() -> Reply:
    return Reply(status=200, body=b'{"status":"ok"}')


# ---------------------------------------------------------------- refusals

_UNKNOWN = problem(404, "no webhook has this path")
_NOT_LOADED = problem(
    503,
    "no webhook that is loaded has this path, and the flow files have a mistake; send it again",
    ("retry-after", "30"),
)
_PAGE_METHODS = problem(405, "only GET and HEAD here", ("allow", "GET, HEAD"))


def _not_allowed(route: Route, scope: Scope) -> Reply:
    allow = ("allow", route.allow)
    if scope["method"] == "OPTIONS":
        return Reply(status=204, headers=(allow,))
    return problem(405, f"this webhook takes {route.allow}", allow)


def _too_large(route: Route) -> Reply:
    return problem(413, f"a body is at most {route.limit} bytes here")
