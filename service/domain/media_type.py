"""Media types: what a Content-Type says of a body, and how a body of that type is decoded.

One rule for webhooks, CloudEvents and Kafka records. Pure. Not here: the decoding (`payload`), and
which types somebody accepts.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from .payload import Encoding

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"

UTF8 = frozenset({"", "utf-8", "utf8", "us-ascii", "ascii"})
"""The charsets that are read: UTF-8 by its names, part of it, or none given."""


class MediaType(NamedTuple):
    """A media type without its parameters (`essence`), and its charset; both in lower case."""

    essence: str
    charset: str

    @property
    def encoding(self) -> Encoding | None:
        """How such a body is decoded; None for a type that is not known."""
        if self.essence.endswith(("/json", "+json")):
            return "json"
        if self.essence == FORM:
            return "form"
        if self.essence.startswith("text/"):
            return "text"
        return "bytes" if self.essence == "application/octet-stream" else None


@lru_cache(maxsize=256)
def media_type(content_type: str) -> MediaType:
    """Read a Content-Type (RFC 9110 section 8.3)."""
    essence, *parameters = content_type.lower().split(";")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset":
            return MediaType(essence.strip(), value.strip().strip('"'))
    return MediaType(essence.strip(), "")
