"""The webhook trigger: an HTTP request becomes an event, and 202 means that it is on disk.

The order for a request: verify (401), decode (400, 415), name the event (id, type, source), `await
emit` (409, 422, 503), answer. Bad input gets a 4xx with a problem document, never an exception;
anything uncertain gets 503 with `Retry-After`. Not here: routes, body limits and sockets
(`service/http/ingest`), and remembering ids (the journal).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property, partial
from typing import get_args

from turnout.service.domain import cloudevents
from turnout.service.domain.cloudevents import Headers, is_envelope
from turnout.service.domain.errors import InvalidData, JournalError, Overloaded, SetupError
from turnout.service.domain.event import NEVER, NO_BODY, Event, like, mint_id
from turnout.service.domain.media_type import FORM, media_type
from turnout.service.domain.payload import Encoding
from turnout.service.domain.trigger import Emitter, Inbound, Receipt, Reply
from turnout.service.domain.units import format_duration, parse_duration, parse_size
from turnout.service.governance.secrets import Secret

from . import replies
from .content import Unsupported, encoding_for, only, refuse_encodings
from .identity import EventId, check_function, check_window, identified, window
from .query import ParsedQuery, read_query
from .signatures import HEADER_NAME, Scheme, Unsigned, Unverified, Verifier, scheme_named
from .unverified_requests import UnverifiedRequests

MAX_ID_CHARACTERS = 256
MAX_STORED_HEADERS = 64
MAX_STORED_HEADER_BYTES = 16 * 1024
MAX_WAIT = timedelta(seconds=60)
GET_WAIT = timedelta(seconds=10)
"""How long a GET of a route with `respond=True` waits for the result."""

CREDENTIALS = frozenset(
    {"authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key", "api-key"}
    | {"x-auth-token", "x-access-token", "x-csrf-token", "x-gitlab-token", "x-hub-signature"}
)
"""Headers that may hold a secret: never stored, whatever the scheme."""

_joined, _text = b", ".join, partial(str, encoding="latin-1")
_SEGMENT = re.compile(r"[A-Za-z0-9._~-]+")

METHODS = ("POST", "PUT", "PATCH", "DELETE", "GET")


def webhook(
    path: str,
    *,
    verify: str | Scheme | None = None,
    secret: Secret | Sequence[Secret] = (),
    data: Encoding | None = None,
    id: EventId | str | None = None,
    id_header: str | None = None,
    dedupe: str | timedelta | None = None,
    max_body: str | int | None = None,
    respond: bool | str | timedelta = False,
    methods: Sequence[str] = ("POST",),
    name: str | None = None,
) -> WebhookTrigger:
    """Start a flow for each request to `/hooks/PATH`: `webhook("/orders")` is `POST /hooks/orders`.

    The answer is `202 {"event": id, "runs": [ids], "duplicate": bool}` once the event is on disk.
    The same delivery again within the dedupe window starts nothing and gets the same answer.
    Without `verify=` the service must listen on loopback.

    * `path`: under `/hooks`; `/t/{tenant}/in` has a parameter, found in `event.params`
    * `verify`: who may call: `"github"`, `"slack"`, `"stripe"`, `hmac("X-Signature")`, `"bearer"`
      for who knows the secret itself, or `"none"` for everybody
    * `secret`: the secret that signs, or several, each of which is valid, so that one can be
      replaced
    * `data`: how the body is decoded: `"json"`, `"text"`, `"form"` or `"bytes"`; by default the
      request's Content-Type decides. The data of a GET is its query
    * `id`: what the sender calls the event: a function of it, or the name of a header
    * `id_header`: the header with the delivery's id, if it is not a known one; the same as
      `id="X-Name"`
    * `dedupe`: for how long an id is remembered, at least `"1m"`, or `"forever"`; the setting by
      default
    * `max_body`: the largest body, such as `"1MiB"`; the setting `max_body_bytes` by default
    * `respond`: `True` lets a caller wait for the run's result with `?wait=10s`, and answers a GET
      with it; `"10s"` answers every request with it, or with 202 after that time. A text is
      answered as it is to a request without `?wait=`, everything else as JSON
    * `methods`: the methods that are taken
    * `name`: the trigger's name, the key of its metrics

    Raises `SetupError`, by `turnout check`, for a path or options that cannot work. Requests are
    refused with a problem document: 400, 401, 404, 405, 409, 413, 415, 422, 429 or 503.

    ```python
    from turnout import flow, secret, webhook


    @flow(on=webhook("/orders", verify="github", secret=secret("ORDERS_HOOK"), respond=True))
    async def order(data: dict[str, str]) -> str:
        return f"order {data['id']}"
    ```
    """
    if not isinstance(path, str):
        raise SetupError(f'webhook({path!r}): a path is written like "/orders"')
    return WebhookTrigger(
        name=name or f"webhook:{path}",
        route=path,
        verify=verify,
        secrets=tuple(secret) if isinstance(secret, Sequence) else (secret,),
        data=data,
        id=id.lower() if isinstance(id, str) else id,
        id_header=id_header.lower() if isinstance(id_header, str) else id_header,
        dedupe=window(dedupe),
        max_body_bytes=None if max_body is None else parse_size(max_body),
        respond=respond is not False,
        respond_within=None if isinstance(respond, bool) else parse_duration(respond),
        methods=tuple(method.upper() for method in methods),
    )


@dataclass(frozen=True, kw_only=True)
class WebhookTrigger:
    """A route under `/hooks` whose requests become events (`domain.trigger.CalledTrigger`)."""

    name: str
    route: str
    verify: str | Scheme | None
    secrets: tuple[Secret, ...]
    data: Encoding | None
    id: EventId | str | None
    id_header: str | None
    dedupe: timedelta | None
    max_body_bytes: int | None
    respond: bool
    respond_within: timedelta | None
    methods: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The word for this kind of trigger."""
        return "webhook"

    @property
    def verified(self) -> bool | None:
        """Whether requests prove who sent them: False for `verify="none"`, None if not given."""
        return None if self.verify is None else self.scheme.signs

    @cached_property
    def scheme(self) -> Scheme:
        """How requests are verified; raises `SetupError` for an unknown name."""
        return _OPEN if self.verify is None else scheme_named(self.verify)

    @cached_property
    def verifier(self) -> Verifier:
        """The scheme with its secrets revealed, once per process; raises `SetupError`."""
        try:
            return self.scheme.verifier(self.secrets)
        except SetupError as error:
            raise SetupError(f"{self.name}: {error.message}") from None

    @cached_property
    def _unverified(self) -> UnverifiedRequests:
        return UnverifiedRequests(self.name, [each.name for each in self.secrets])

    def unlock(self) -> None:
        """Reveal the secrets now, so that a missing one stops the start, not a delivery."""
        _ = self.verifier

    def check(self) -> None:
        """Raise `SetupError` for a path, scheme or option that cannot work; reveals nothing."""
        _check_path(self.route)
        if not all(isinstance(each, Secret) for each in self.secrets):
            raise SetupError(
                f'{self.name}: secret= takes secret("NAME"), never the secret itself: put its '
                "value into the environment variable NAME"
            )
        scheme = self.scheme
        scheme.check()
        if scheme.signs and not self.secrets:
            raise SetupError(f'{self.name}: verify= needs a secret: secret=secret("NAME")')
        if self.secrets and not scheme.signs:
            raise SetupError(
                f'{self.name}: a secret verifies nothing without verify=; write verify="github" '
                'or verify=hmac("X-Signature")'
            )
        self._check_id()
        if self.data is not None and self.data not in get_args(Encoding):
            raise SetupError(
                f"{self.name}: data={self.data!r} is not one of {', '.join(get_args(Encoding))}"
            )
        if not self.methods or not set(self.methods) <= set(METHODS):
            raise SetupError(f"{self.name}: methods= takes some of {', '.join(METHODS)}")
        if self.respond_within is not None and not timedelta(0) < self.respond_within <= MAX_WAIT:
            raise SetupError(
                f'{self.name}: respond= takes True, or a time such as "10s", at most '
                f"{format_duration(MAX_WAIT)}"
            )
        if self.max_body_bytes == 0:
            raise SetupError(f'{self.name}: max_body= takes at least a byte, such as "1MiB"')

    def _check_id(self) -> None:
        for option, header in (("id_header", self.id_header), ("id", self.id)):
            if header is None or (option == "id" and not isinstance(header, str)):
                continue
            if not HEADER_NAME.fullmatch(str(header)):
                raise SetupError(f"{self.name}: {option}={header!r} is not a header's name")
        if self.id is not None and not isinstance(self.id, str):
            check_function(self.name, self.id)
        if self.id is not None and self.id_header is not None:
            raise SetupError(f"{self.name}: id= and id_header= say the same; write id= alone")
        check_window(self.name, self.dedupe)

    async def receive(self, inbound: Inbound, emit: Emitter) -> Reply:
        """Verify, decode, emit, and only then answer 202; see the module for the statuses."""
        try:
            self.verifier.verify(inbound)
        except Unverified as error:
            self._unverified.tell(inbound.client, str(error))
            emit.reject("unverified")
            return replies.UNVERIFIED
        try:
            query = read_query(inbound.query, answers=self.respond)
            wait = self._wait(inbound, query) if self.respond else None
            event = self._event(inbound, query)
            _ = event.data  # decoded once, here; the event keeps it
            if self.id is not None:
                event = self._identified(event)
        except Unsupported as error:
            emit.reject("unsupported")
            return replies.problem(415, str(error))
        except InvalidData as error:
            emit.reject("undecodable")
            return replies.undecodable(error)
        try:
            (receipt,) = await emit((event,))
        except (Overloaded, JournalError) as error:
            return replies.busy(error)
        if receipt.conflict or not receipt.stored:
            return replies.refused(receipt)
        if wait is not None and receipt.runs:
            return await _answered(receipt, emit, wait)
        return replies.accepted(receipt)

    # ---- a request as an event

    def event(self, inbound: Inbound) -> Event:
        """Return the event of a verified request; raises `InvalidData` or `Unsupported`."""
        return self._identified(
            self._event(inbound, read_query(inbound.query, answers=self.respond))
        )

    def _identified(self, event: Event) -> Event:
        """Return the event under the id that the author's function gives it, if there is one."""
        if self.id is None or isinstance(self.id, str):
            return event
        _ = event.data  # what cannot be decoded is refused before anybody is asked about it
        return identified(event, self.id)

    def _event(self, inbound: Inbound, query: ParsedQuery) -> Event:
        headers = inbound.headers
        if "content-encoding" in headers:
            refuse_encodings(headers["content-encoding"])
        content_type = only(headers, "content-type")
        if self.data != "bytes" and ("ce-specversion" in headers or is_envelope(content_type)):
            return self._cloudevent(inbound, query)
        body = inbound.body
        if inbound.method == "GET" and not body and self.data in (None, "form"):
            body = query.text  # the only data there is
            content_type = FORM if body or self.data else None
        encoding = encoding_for(content_type, self.data)
        if encoding == "json" and not body and content_type is not None:
            raise InvalidData("the body is empty where JSON was expected")
        event_id = self._delivery_id(headers)
        return like(
            self._model,
            id=event_id or mint_id(),
            source=inbound.path,
            type=self._type(headers),
            time=inbound.received_at,
            datacontenttype=content_type,
            encoding=encoding,
            body=body if _has_body(body, headers, content_type, encoding) else NO_BODY,
            headers=self._stored_headers(headers),
            params=inbound.params,
            query=query.fields,
            minted=event_id is None,
        )

    @cached_property
    def _model(self) -> Event:
        """The fields that all events of this trigger share."""
        return Event(id="", source=self.route, type="", time=NEVER, trigger=self.name)

    def _cloudevent(self, inbound: Inbound, query: ParsedQuery) -> Event:
        content_type = only(inbound.headers, "content-type")
        essence = media_type(content_type or "").essence
        if is_envelope(content_type) and essence != cloudevents.STRUCTURED:
            raise Unsupported(
                f"{essence[:80]} is not accepted here: send one event a request, "
                f"as {cloudevents.STRUCTURED} or with ce- headers"
            )
        event = cloudevents.parse(inbound.headers, inbound.body, now=inbound.received_at)
        encoding = event.encoding
        if self.data is not None:
            encoding = encoding_for(event.datacontenttype, self.data)
        return replace(
            event,
            encoding=encoding,
            headers=self._stored_headers(inbound.headers),
            params=inbound.params,
            query=query.fields,
            trigger=self.name,
        )

    def _delivery_id(self, headers: Headers) -> str | None:
        """Return the id that stays the same when the sender delivers again, or None."""
        for header in self._id_headers:
            if header in headers and (text := only(headers, header)):
                if len(text) > MAX_ID_CHARACTERS or not text.isprintable():
                    raise InvalidData(
                        f"an id is at most {MAX_ID_CHARACTERS} printable characters", field=header
                    )
                return text
        return None

    @cached_property
    def _id_headers(self) -> tuple[str, ...]:
        given = self.id if isinstance(self.id, str) else self.id_header
        named = (given, self.scheme.id_header, "idempotency-key")
        return tuple(dict.fromkeys(header for header in named if header is not None))

    def _type(self, headers: Headers) -> str:
        header = self.scheme.type_header
        if header is None or header not in headers:
            return "turnout.webhook"
        word = only(headers, header) or ""
        if not word.isidentifier() or not word.isascii() or len(word) > 64:
            raise InvalidData("the event type must be one ASCII word", field=header)
        return self.scheme.type_prefix + word

    def _stored_headers(self, headers: Headers) -> dict[str, str]:
        """Return the headers to store: no credentials, and no more than the bounds allow."""
        stored = dict(zip(headers, map(_text, map(_joined, headers.values())), strict=True))
        for name in self._withheld.intersection(stored):
            del stored[name]
        if (
            len(stored) > MAX_STORED_HEADERS
            or sum(map(len, stored.values())) > MAX_STORED_HEADER_BYTES
        ):
            return _trimmed(stored)
        return stored

    @cached_property
    def _withheld(self) -> frozenset[str]:
        return CREDENTIALS | self.scheme.credentials

    def _wait(self, inbound: Inbound, query: ParsedQuery) -> _Wait | None:
        """Return how long to wait for the result, None for not at all; raises `InvalidData`."""
        if query.wait is None:
            within = self.respond_within or (GET_WAIT if inbound.method == "GET" else None)
            return None if within is None else _Wait(within.total_seconds(), plain=True)
        try:
            wait = parse_duration(query.wait)
        except SetupError as error:
            raise InvalidData(str(error), field="wait") from None
        if wait > MAX_WAIT:
            raise InvalidData(
                f"wait= is at most {format_duration(MAX_WAIT)}; ask GET /api/runs later",
                field="wait",
            )
        return _Wait(wait.total_seconds(), plain=False)


@dataclass(frozen=True, slots=True)
class _Wait:
    """How a sender is answered: after at most `seconds`, with a text as it is or as JSON."""

    seconds: float
    plain: bool


_OPEN = Unsigned()


def _has_body(body: bytes, headers: Headers, content_type: str | None, encoding: Encoding) -> bool:
    """Return whether a request has a body, even an empty one.

    A length or a transfer coding means a body (RFC 9112 section 6.3), but browsers also send a
    length of 0: where JSON is expected, no bytes are no body.
    """
    if body or content_type is not None:
        return True
    return encoding != "json" and not _FRAMING.isdisjoint(headers)


_FRAMING = frozenset({"content-length", "transfer-encoding"})


def _trimmed(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the first headers, as many as the bounds allow."""
    stored: dict[str, str] = {}
    bytes_left = MAX_STORED_HEADER_BYTES
    for name, value in headers.items():
        bytes_left -= len(value)
        if bytes_left < 0 or len(stored) == MAX_STORED_HEADERS:
            break
        stored[name] = value
    return stored


def _check_path(path: str) -> None:
    names: set[str] = set()
    if not path.startswith("/") or path == "/" or len(path) > 1024:
        raise SetupError(f'webhook({path!r}): a path is written like "/orders" or "/t/{{tenant}}"')
    for part in path[1:].split("/"):
        name = part[1:-1] if part[:1] == "{" and part[-1:] == "}" else None
        if name is None and not _SEGMENT.fullmatch(part):
            raise SetupError(
                f"webhook({path!r}): {part!r} cannot be a part of a path: use letters, digits and "
                "- . _ ~, or {name} for a whole part"
            )
        if name is not None and (not name.isidentifier() or name in names):
            raise SetupError(f"webhook({path!r}): {part!r} must be a name, and stand once")
        names.update([name] if name else [])
        if part in (".", ".."):
            raise SetupError(f"webhook({path!r}): {part!r} would be taken away by proxies")


async def _answered(receipt: Receipt, emit: Emitter, wait: _Wait) -> Reply:
    try:
        outcome = await emit.result(receipt, wait.seconds)
    except Overloaded:  # the event is stored anyway
        outcome = None
    if outcome is None:
        return replace(replies.accepted(receipt), waited=True)
    return replies.result(outcome, receipt, plain=wait.plain)
