"""Who may call a webhook: signature schemes, verified over the raw bytes before any parsing.

Every scheme compares bytes in constant time, tries every active secret, and raises one exception,
`Unverified`, whatever is wrong with a request: a missing, repeated, oversized or malformed header
reveals no more than a wrong signature. A signature is compared as written, never decoded, so that
two spellings of one signature cannot both pass.

Not here: remembering deliveries (the journal's dedupe window) and answering (the webhook). Another
scheme is one class with the attributes of `Scheme` and one line in `SCHEMES`.
"""

from __future__ import annotations

import base64
import binascii
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hmac import compare_digest, digest
from typing import Literal, Protocol, get_args

from turnout.service.domain.cloudevents import INSTANT
from turnout.service.domain.errors import SetupError, TurnoutError
from turnout.service.domain.trigger import Inbound
from turnout.service.domain.units import parse_duration
from turnout.service.governance.secrets import Secret

_log = logging.getLogger("turnout.webhook")

MAX_HEADER_BYTES = 4096
"""A longer header that takes part in verification is refused unread."""

Algorithm = Literal["sha256", "sha512"]
Encoding = Literal["hex", "base64"]
KeyEncoding = Literal["text", "hex", "base64"]
Template = Literal[
    "{body}", "{timestamp}.{body}", "{id}.{timestamp}.{body}", "v0:{timestamp}:{body}"
]

HEADER_NAME = re.compile(r"[a-z0-9_-]{1,64}")
_SECONDS = re.compile(r"[0-9]{1,12}")
_MILLISECONDS = re.compile(r"[0-9]{13}")


class Unverified(TurnoutError):
    """Raised when a request does not prove that it comes from a holder of the secret.

    The message is only for the operator's log; a sender learns nothing but the refusal.
    """


class Verifier(Protocol):
    """A scheme with its secrets, ready to verify requests."""

    def verify(self, inbound: Inbound) -> str:
        """Return the name of the secret that signed this request; raises `Unverified`."""


class Scheme(Protocol):
    """How one kind of sender proves its identity: a value without secrets."""

    @property
    def signs(self) -> bool:
        """Whether requests are signed, and secrets are needed."""

    @property
    def credentials(self) -> frozenset[str]:
        """Headers (lower-case) that must not be stored with the event."""

    @property
    def id_header(self) -> str | None:
        """The header that stays the same when the sender delivers again, or None."""

    @property
    def type_header(self) -> str | None:
        """The header that names the kind of event, or None."""

    @property
    def type_prefix(self) -> str:
        """The prefix of that header's value in the event's type: `github.`."""

    def check(self) -> None:
        """Raise `SetupError` for settings that cannot work."""

    def verifier(self, secrets: Sequence[Secret]) -> Verifier:
        """Reveal the secrets; raises `SetupError` for a missing, empty or undecodable one."""


# ---------------------------------------------------------------- no signature


@dataclass(frozen=True, kw_only=True)
class Unsigned:
    """Accepts everybody: written as `verify="none"`, or allowed on loopback."""

    signs: bool = False
    credentials: frozenset[str] = frozenset()
    id_header: str | None = None
    type_header: str | None = None
    type_prefix: str = ""

    def check(self) -> None:
        """Accept: there are no settings."""

    def verifier(self, secrets: Sequence[Secret]) -> Verifier:
        """Return itself: it has no secrets."""
        return self

    def verify(self, inbound: Inbound) -> str:
        """Return "none"."""
        return "none"


# ---------------------------------------------------------------- HMAC


@dataclass(frozen=True, kw_only=True)
class Hmac:
    """A header holds `prefix` + HMAC(secret, template), in lower-case hex or standard base64."""

    header: str
    prefix: str = ""
    algorithm: Algorithm = "sha256"
    encoding: Encoding = "hex"
    template: Template = "{body}"
    timestamp_header: str | None = None
    id_header: str | None = None
    tolerance: timedelta = timedelta(seconds=300)
    key: KeyEncoding = "text"
    type_header: str | None = None
    type_prefix: str = ""

    @property
    def signs(self) -> bool:
        """True: a secret is needed."""
        return True

    @property
    def credentials(self) -> frozenset[str]:
        """The signature's header."""
        return frozenset({self.header})

    def check(self) -> None:
        """Raise `SetupError` for a header, algorithm, encoding or template that cannot work."""
        for choice, allowed in (
            (self.algorithm, ("sha256", "sha512")),
            (self.encoding, ("hex", "base64")),
            (self.key, ("text", "hex", "base64")),
            (self.template, get_args(Template)),
        ):
            if choice not in allowed:
                raise SetupError(f"hmac: {choice!r} is not one of {', '.join(allowed)}")
        for header in (self.header, self.timestamp_header, self.id_header, self.type_header):
            if header is not None and not HEADER_NAME.fullmatch(header):
                raise SetupError(f"hmac: {header!r} cannot be the name of a header")
        if not self.prefix.isascii():
            raise SetupError(f"hmac: the prefix {self.prefix!r} must be ASCII")
        if (self.timestamp_header is not None) != ("{timestamp}" in self.template):
            raise SetupError(
                "hmac: timestamp_header= and a template with {timestamp} go together: "
                "a time nobody signed proves nothing"
            )
        if "{id}" in self.template and self.id_header is None:
            raise SetupError("hmac: a template with {id} needs id_header=")

    def verifier(self, secrets: Sequence[Secret]) -> Verifier:
        """Reveal the secrets, once; rotation by restart."""
        self.check()
        return HmacVerifier(self, _keys(secrets, self.key))


class HmacVerifier:
    """Verifies requests by an HMAC of their bytes."""

    def __init__(self, scheme: Hmac, keys: Sequence[tuple[str, bytes]]) -> None:
        self._scheme = scheme
        self._keys = tuple(keys)
        self._prefix = scheme.prefix.encode("ascii")
        self._written = _WRITTEN[scheme.encoding]
        self._plain = scheme.template == "{body}"
        self._tolerance_seconds = scheme.tolerance.total_seconds()

    def verify(self, inbound: Inbound) -> str:
        """Return the name of the secret whose signature the request carries."""
        scheme = self._scheme
        offered = self._split(_only(inbound.headers, scheme.header))
        message = inbound.body if self._plain else self._signed(inbound)
        expected = [
            (name, self._prefix + self._written(digest(key, message, scheme.algorithm)))
            for name, key in self._keys
        ]
        return _signer(inbound, expected, offered)

    def _split(self, value: bytes) -> list[bytes]:
        """Return every signature in a header: while a secret is replaced, a sender sends several.

        They are separated by blanks (Standard Webhooks), or by commas if the prefix has none.
        """
        if b"," not in self._prefix:
            value = value.replace(b", ", b",").replace(b",", b" ")
        signatures = value.split(b" ")
        if not all(signatures):
            raise Unverified("the signatures are not one blank or comma apart")
        return signatures

    def _signed(self, inbound: Inbound) -> bytes:
        """Return the bytes that were signed: the template with its parts filled in."""
        scheme = self._scheme
        stamp = _only(inbound.headers, scheme.timestamp_header or "")
        _refuse_far(inbound, _instant(stamp), self._tolerance_seconds)
        if scheme.template == "v0:{timestamp}:{body}":
            return b"v0:%b:%b" % (stamp, inbound.body)
        if "{id}" not in scheme.template:
            return b"%b.%b" % (stamp, inbound.body)
        identity = _only(inbound.headers, scheme.id_header or "")
        if b"." in identity:  # one signature would fit several splits of id, time and body
            raise Unverified("the delivery id holds a dot")
        return b"%b.%b.%b" % (identity, stamp, inbound.body)


# ---------------------------------------------------------------- Stripe


_STRIPE_HEADER = "stripe-signature"
_STRIPE_TOLERANCE_SECONDS = 300
"""As in Stripe's own libraries, but in both directions."""


@dataclass(frozen=True, kw_only=True)
class Stripe:
    """One header holds the time and the signatures: `Stripe-Signature: t=TIME,v1=HEX,v1=HEX`.

    A signature is HMAC-SHA256(secret, `TIME.body`), in lower-case hex; there are several while a
    secret is rolled. What is signed in another way (`v0=`) does not count.
    """

    signs: bool = True
    credentials: frozenset[str] = frozenset({_STRIPE_HEADER})
    id_header: str | None = None
    type_header: str | None = None
    type_prefix: str = ""

    def check(self) -> None:
        """Accept: there are no settings."""

    def verifier(self, secrets: Sequence[Secret]) -> Verifier:
        """Reveal the secrets, once; rotation by restart."""
        return StripeVerifier(_keys(secrets, "text"))


class StripeVerifier:
    """Verifies requests by what Stripe signs: the time and the body."""

    def __init__(self, keys: Sequence[tuple[str, bytes]]) -> None:
        self._keys = tuple(keys)

    def verify(self, inbound: Inbound) -> str:
        """Return the name of the secret whose signature the request carries."""
        value = _only(inbound.headers, _STRIPE_HEADER)
        parts = [part.partition(b"=") for part in value.split(b",")]
        stamps = [value for name, _, value in parts if name == b"t"]
        offered = [value for name, _, value in parts if name == b"v1"]
        if len(stamps) != 1 or not offered:
            raise Unverified(f"the header {_STRIPE_HEADER} must have one t= and at least one v1=")
        (stamp,) = stamps
        if not _SECONDS.fullmatch(stamp.decode("latin-1")):
            raise Unverified(f"t= in the header {_STRIPE_HEADER} is not in seconds since 1970")
        _refuse_far(inbound, int(stamp), _STRIPE_TOLERANCE_SECONDS)
        message = b"%b.%b" % (stamp, inbound.body)
        expected = [
            (name, binascii.hexlify(digest(key, message, "sha256"))) for name, key in self._keys
        ]
        return _signer(inbound, expected, offered)


# ---------------------------------------------------------------- a token


@dataclass(frozen=True, kw_only=True)
class Bearer:
    """The secret itself is sent: `Authorization: Bearer SECRET` (RFC 6750).

    It says who calls, not what was sent, nor when: who hears one request can send any other.
    """

    signs: bool = True
    credentials: frozenset[str] = frozenset({"authorization"})
    id_header: str | None = None
    type_header: str | None = None
    type_prefix: str = ""

    def check(self) -> None:
        """Accept: there are no settings."""

    def verifier(self, secrets: Sequence[Secret]) -> Verifier:
        """Reveal the secrets, once; rotation by restart."""
        return BearerVerifier(_keys(secrets, "text"))


class BearerVerifier:
    """Verifies requests by the token they carry."""

    def __init__(self, keys: Sequence[tuple[str, bytes]]) -> None:
        self._keys = tuple(keys)

    def verify(self, inbound: Inbound) -> str:
        """Return the name of the secret that the request carries."""
        kind, _, offered = _only(inbound.headers, "authorization").partition(b" ")
        if kind.lower() != b"bearer":
            raise Unverified("the header authorization must be: Bearer, a blank and the token")
        return _signer(inbound, self._keys, [offered], what="token")


# ---------------------------------------------------------------- what schemes share


def _signer(
    inbound: Inbound,
    expected: Sequence[tuple[str, bytes]],
    offered: Sequence[bytes],
    what: str = "signature",
) -> str:
    """Return the name of the first secret whose signature is offered; raises `Unverified`."""
    matched = None
    for name, signature in expected:  # no early exit: the time taken reveals no secret
        for each in offered:
            if compare_digest(signature, each) and matched is None:
                matched = name
    if matched is None:
        raise Unverified(f"the {what} does not match")
    _log.debug("webhook.verified secret=%s path=%s", matched, inbound.path)
    return matched


def _refuse_far(inbound: Inbound, signed_at: float, tolerance_seconds: float) -> None:
    if abs(inbound.received_at.timestamp() - signed_at) > tolerance_seconds:
        raise Unverified("the timestamp is too far from now")


def _instant(stamp: bytes) -> float:
    """Return a timestamp in any supported form as seconds since 1970.

    No form is the beginning of another one that goes on with a dot or a colon, so what is signed
    behind a time can be split from it in only one way.
    """
    text = stamp.decode("latin-1")
    if _SECONDS.fullmatch(text):
        return int(text)
    if _MILLISECONDS.fullmatch(text):
        return int(text) / 1000
    try:
        if text.endswith(" GMT"):  # RFC 9110 section 5.6.7
            return (
                datetime.strptime(text, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC).timestamp()
            )
        if INSTANT.fullmatch(text):
            return datetime.fromisoformat(text.upper()).timestamp()
    except (ValueError, OverflowError):
        pass
    raise Unverified("cannot read the timestamp: give seconds since 1970, RFC 3339 or an HTTP date")


def _only(headers: Mapping[str, Sequence[bytes]], name: str) -> bytes:
    """Return the one value of a header: present once, not empty, of bounded size."""
    values = headers.get(name, ())
    if len(values) != 1 or not 0 < len(values[0]) <= MAX_HEADER_BYTES:
        raise Unverified(
            f"the header {name} must occur once and have 1 to {MAX_HEADER_BYTES} bytes"
        )
    return values[0]


_WRITTEN: Mapping[Encoding, Callable[[bytes], bytes]] = {
    "hex": binascii.hexlify,
    "base64": base64.b64encode,
}


def _keys(secrets: Sequence[Secret], encoding: KeyEncoding) -> list[tuple[str, bytes]]:
    if not secrets:
        raise SetupError('a signature needs a secret: secret=secret("NAME")')
    return [(secret.name, _key(secret, encoding)) for secret in secrets]


def _key(secret: Secret, encoding: KeyEncoding) -> bytes:
    text = secret.reveal()
    try:
        if encoding == "text":
            key = text.encode("utf-8")
        elif encoding == "hex":
            key = bytes.fromhex(text)
        else:
            key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except ValueError:  # its message would quote the secret
        key = b""
        problem = f"is not {encoding}"
    else:
        problem = "is empty"
    if not key:
        raise SetupError(f"secret {secret.name!r} {problem}: it cannot verify a webhook")
    return key


# ---------------------------------------------------------------- what authors write

SCHEMES: Mapping[str, Scheme] = {
    # docs.github.com, "Validating webhook deliveries"; a redelivery keeps its X-GitHub-Delivery.
    "github": Hmac(
        header="x-hub-signature-256",
        prefix="sha256=",
        id_header="x-github-delivery",
        type_header="x-github-event",
        type_prefix="github.",
    ),
    # docs.slack.dev, "Verifying requests from Slack"; what comes again has the id in its body.
    "slack": Hmac(
        header="x-slack-signature",
        prefix="v0=",
        template="v0:{timestamp}:{body}",
        timestamp_header="x-slack-request-timestamp",
    ),
    # docs.stripe.com, "Verify webhook signatures"; what comes again has the id in its body.
    "stripe": Stripe(),
    "bearer": Bearer(),
    "none": Unsigned(),
}
"""The schemes that an author selects by name: `verify="github"`."""


def hmac(
    header: str,
    *,
    prefix: str = "",
    algorithm: Algorithm = "sha256",
    encoding: Encoding = "hex",
    template: Template = "{body}",
    timestamp_header: str | None = None,
    id_header: str | None = None,
    tolerance: str | timedelta = "5m",
    key: KeyEncoding = "text",
) -> Hmac:
    """Declare how a sender signs: `webhook("/shop", verify=hmac("X-Shop-Signature"), secret=…)`.

    The signature is compared over the raw bytes, in constant time, with every secret the webhook
    was given. The header may hold several signatures, separated by a blank or comma; one must be
    right.

    * `header`: the header with the signature
    * `prefix`: what stands before it, such as `"sha256="`
    * `algorithm`: `"sha256"` or `"sha512"`
    * `encoding`: how the signature is written: `"hex"` or `"base64"`
    * `template`: what is signed: `"{body}"`, `"{timestamp}.{body}"`, `"{id}.{timestamp}.{body}"` or
      `"v0:{timestamp}:{body}"`
    * `timestamp_header`: the header with `{timestamp}`: seconds or milliseconds since 1970, RFC
      3339, or an HTTP date
    * `id_header`: the header with `{id}`, which also identifies a redelivery
    * `tolerance`: how far from now a timestamp may be, in either direction
    * `key`: how the secret's text encodes the key: `"text"`, `"hex"` or `"base64"`, which may start
      with `whsec_`

    Raises `SetupError`, by `turnout check`, for what could not verify. A request that is not signed
    right is answered 401.

    ```python
    from turnout import flow, hmac, secret, webhook

    signed = hmac("X-Shop-Signature", template="{timestamp}.{body}", timestamp_header="X-Shop-Time")


    @flow(on=webhook("/shop", verify=signed, secret=secret("SHOP_HOOK")))
    async def sold(sale: dict[str, str]) -> str:
        return sale["id"]
    ```
    """
    return Hmac(
        header=header.lower(),
        prefix=prefix,
        algorithm=algorithm,
        encoding=encoding,
        template=template,
        timestamp_header=None if timestamp_header is None else timestamp_header.lower(),
        id_header=None if id_header is None else id_header.lower(),
        tolerance=parse_duration(tolerance),
        key=key,
    )


def scheme_named(verify: str | Scheme) -> Scheme:
    """Return the scheme that an author named; raises `SetupError` that lists the known ones."""
    if not isinstance(verify, str):
        if hasattr(verify, "verifier"):
            return verify
        raise SetupError(f'verify={verify!r}: write "github", or hmac("X-Header")')
    scheme = SCHEMES.get(verify)
    if scheme is None:
        known = ", ".join(f'"{name}"' for name in SCHEMES)
        raise SetupError(f'no signature scheme {verify!r}; there are {known} and hmac("X-Header")')
    return scheme
