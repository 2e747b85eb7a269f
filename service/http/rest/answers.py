"""Answers: a JSON document, a page of a list `{"items": [...], "next": cursor}`, a problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Response

from turnout.service.domain import problems
from turnout.service.domain.run import Run
from turnout.service.journal.records import Filter, StoredEvent
from turnout.service.operate import documents


def json_answer(document: Any, status: int = 200) -> Response:
    """Answer with a JSON document."""
    return Response(documents.encode(document), status, media_type="application/json")


def page_answer(items: Sequence[Mapping[str, Any]], following: int | None = None) -> Response:
    """Answer with one page of a list and the cursor of the next."""
    return json_answer({"items": items, "next": None if following is None else str(following)})


def next_cursor(rows: Sequence[Run] | Sequence[StoredEvent], which: Filter) -> int | None:
    """Return the cursor behind a full page, None behind the last one."""
    return rows[-1].seq if len(rows) == which.limit else None


def refusal(
    status: int, detail: str, headers: Mapping[str, str] | None = None, **members: Any
) -> Response:
    """Answer with a problem document."""
    body = problems.document(status, detail, **members)
    return Response(body, status, headers, media_type=problems.CONTENT_TYPE)
