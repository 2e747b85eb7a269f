"""The query of a request: the part that asks turnout to wait, and the part that is the sender's.

`wait` is turnout's where the route answers with results, and the sender's everywhere else. A field
with a credential is not stored, like such a header. Pure functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from turnout.service.domain.errors import InvalidData
from turnout.service.domain.event import Query
from turnout.service.domain.payload import decode

CREDENTIALS = frozenset(
    {b"access_token", b"api_key", b"apikey", b"api-key", b"auth_token", b"authorization"}
    | {b"client_secret", b"password"}
)
"""Fields that may hold a secret: never stored, whatever the scheme."""


@dataclass(frozen=True, slots=True)
class ParsedQuery:
    """A parsed query: `text` is the sender's part as it was sent, `fields` the same decoded."""

    wait: str | None
    text: bytes
    fields: Query


NOTHING = ParsedQuery(None, b"", {})


def read_query(query: bytes, *, answers: bool) -> ParsedQuery:
    """Return a parsed query; raises `InvalidData` unless it is a form of UTF-8 text.

    `answers`: the route answers with results, so `wait` is turnout's.
    """
    if not query:
        return NOTHING
    wait: str | None = None
    pairs = []
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        name = unquote_to_bytes(name).lower()
        if answers and name == b"wait":
            wait = unquote_to_bytes(value.replace(b"+", b" ")).decode("utf-8", "replace")
        elif name not in CREDENTIALS:
            pairs.append(pair)
    text = b"&".join(pairs)
    try:
        return ParsedQuery(wait, text, decode(text, "form"))
    except InvalidData as error:
        raise InvalidData(f"the query cannot be read: {error}", field="query") from None
