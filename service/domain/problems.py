"""Errors over HTTP: RFC 9457 problem documents, one mapping from turnout's errors to statuses.

`type` stays `about:blank` (section 4.2.1): the status says the kind, `detail` says what to do.
A caller learns nothing of the inside: an error nobody expected is a bare 500.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson

from .errors import (
    ClaimLost,
    Expired,
    InvalidData,
    JournalBroken,
    JournalError,
    NotFound,
    Overloaded,
    QueueFull,
    Refused,
    RefusedByFlows,
    SetupError,
    TriggerError,
    TurnoutError,
)

CONTENT_TYPE = "application/problem+json"

_STATUSES: tuple[tuple[type[TurnoutError], int], ...] = (
    (NotFound, 404),
    (Expired, 410),
    (Refused, 409),
    (ClaimLost, 409),
    (InvalidData, 422),
    (SetupError, 422),
    (QueueFull, 429),
    (Overloaded, 503),
    (TriggerError, 503),
    (JournalBroken, 503),
    (JournalError, 503),
)


def document(status: int, detail: str, **members: Any) -> bytes:
    """Return an encoded problem document; `members` are extensions (`field`, `refusals`, …)."""
    phrase = HTTPStatus(status).phrase
    known = {"type": "about:blank", "title": phrase, "status": status, "detail": detail}
    return orjson.dumps({**members, **known})


def of_error(error: TurnoutError) -> tuple[int, bytes, Mapping[str, str]]:
    """Return status, document and extra headers for an error turnout raises on purpose."""
    status = next((code for kind, code in _STATUSES if isinstance(error, kind)), 500)
    detail = str(error) if status < 500 or status == 503 else "an unexpected error; see the log"
    headers: dict[str, str] = {}
    members: dict[str, Any] = {}
    if status in (429, 503):
        seconds = error.retry_after_seconds if isinstance(error, Overloaded) else 5
        headers["Retry-After"] = str(seconds)
    if isinstance(error, InvalidData) and error.field is not None:
        members["field"] = error.field
    if isinstance(error, RefusedByFlows):
        members["refusals"] = dict(error.refusals)
    return status, document(status, detail, **members), headers
