"""The forms in which a secret's value may appear in text: as it is, escaped, encoded.

Pure, and deliberately broad: what is found is masked or refused. Encoded forms need at least
`ENCODED_LENGTH` bytes, since the encoding of a shorter value would match by chance. Not here:
forms that hide a value on purpose (encrypted, compressed, reversed, split).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

ENCODED_LENGTH = 8
"""The least bytes of a value, or of a line of it, for its encodings to be searched."""


def forms_of(value: str) -> frozenset[str]:
    """Return every text that reveals `value`, or a long enough line of it."""
    forms = set(_written(value))
    for line in value.splitlines():  # output is written line by line
        if len(line) >= ENCODED_LENGTH and not line.startswith("-----"):  # the header lines of PEM
            forms.update(_written(line))
    return frozenset(forms)


def _written(value: str) -> Iterator[str]:
    raw = value.encode("utf-8", "surrogateescape")
    yield value
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield json.dumps(value)[1:-1]
    yield repr(value)[1:-1]
    yield repr(raw)[2:-1]
    if len(raw) >= ENCODED_LENGTH:
        yield from _encoded(raw)


def _encoded(raw: bytes) -> Iterator[str]:
    yield raw.hex()
    yield raw.hex().upper()
    for safe in ("/", ""):
        yield quote(raw, safe=safe)
        yield _lower_escapes(quote(raw, safe=safe))
    yield quote_plus(raw)
    yield _lower_escapes(quote_plus(raw))
    for before in range(3):
        core = _base64_core(raw, before)
        yield core
        yield core.replace("+", "-").replace("/", "_")


def _base64_core(raw: bytes, before: int) -> str:
    """Return the base64 characters that depend on `raw` only, `before` bytes into a group of three.

    So that it is also found inside a longer text, such as the `user:password` of HTTP Basic.
    """
    text = base64.b64encode(bytes(before) + raw).decode("ascii")
    first = -(-before * 8 // 6)
    last = (before + len(raw)) * 8 // 6
    return text[first:last]


def _lower_escapes(text: str) -> str:
    """Return quoted text with its escapes in lower case, as some write them: `%2f`."""
    head, *escaped = text.split("%")
    return "%".join([head, *(each[:2].lower() + each[2:] for each in escaped)])
