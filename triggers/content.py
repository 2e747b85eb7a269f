"""Which bodies a webhook accepts, by the headers that describe them.

Only forms that can be read safely are accepted; anything else is `Unsupported`, answered with 415.
Not here: what a media type means (`domain.media_type`) and the decoding (`domain.payload`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from turnout.service.domain.errors import InvalidData, TurnoutError
from turnout.service.domain.media_type import UTF8, media_type
from turnout.service.domain.payload import Encoding


class Unsupported(TurnoutError):
    """Raised for a body in a form that the route does not accept: 415."""


def only(headers: Mapping[str, Sequence[bytes]], name: str) -> str | None:
    """Return the one value of a header as text, None when missing; raises `InvalidData`."""
    values = headers.get(name)
    if values is None:
        return None
    if len(values) != 1:
        raise InvalidData(f"the header {name} is sent {len(values)} times", field=name)
    try:
        return values[0].decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidData(f"the header {name} is not UTF-8", field=name) from None


def refuse_encodings(values: Sequence[bytes]) -> None:
    """Raise `Unsupported` for any Content-Encoding but identity: a small body may unpack to GiB."""
    for word in b",".join(values).lower().split(b","):
        if word.strip() not in (b"", b"identity"):
            raise Unsupported("send the body as it is, without Content-Encoding")


@lru_cache(maxsize=256)
def encoding_for(content_type: str | None, declared: Encoding | None) -> Encoding:
    """Return how a body of this type is decoded; raises `Unsupported`.

    A request without a type is read as the route declares, JSON by default.
    """
    if declared == "bytes" or content_type is None:
        return declared or "json"
    kind = media_type(content_type)
    essence, natural = kind.essence, kind.encoding
    if natural != "bytes" and kind.charset not in UTF8:
        raise Unsupported(f"only UTF-8 is read here, not charset={kind.charset[:40]}")
    if declared == "text" and (natural in ("text", "json") or essence.endswith(("/xml", "+xml"))):
        return "text"
    if natural is None or declared not in (None, natural):
        given = essence[:80] or "a Content-Type without a value"
        taken = declared or "JSON, form, text, application/octet-stream or CloudEvents"
        raise Unsupported(f"{given} is not accepted here; send {taken}")
    return natural
