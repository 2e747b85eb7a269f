"""Decisions as rows: those made when an event is stored lie with it, later ones beside it.

Their number and their size are bounded: a sender that repeats an event for ever must not fill the
disk. A decision goes with its event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import apsw
import orjson

from turnout.service.domain.decisions import FACT_CHARACTERS, Fact
from turnout.service.journal.records import Decision

from .statements import load
from .values import dump, instant, storable

REPEATS_KEPT = 20
"""The most occasions on which an event was delivered again that are kept of it."""

OCCASIONS_KEPT = 200
"""The most occasions of any kind: a run that a replay makes may be refused each time."""

_ADD_DECISIONS = load("append")["add_decisions"]


def add_decisions(
    connection: apsw.Connection,
    event_seq: int,
    decisions: Sequence[Decision],
    at: int,
    *,
    most: int = OCCASIONS_KEPT,
) -> None:
    """Store decisions made at one time (microseconds) about a stored event, up to a bound."""
    if decisions:
        connection.execute(_ADD_DECISIONS, (event_seq, pack_decisions(decisions, at), most))


def pack_decisions(decisions: Sequence[Decision], at: int) -> str:
    """Return decisions made at one time as a JSON array."""
    made_at = _text(instant(at))
    return dump([_document(made, made_at) for made in decisions])


def _document(made: Decision, at: str) -> dict[str, Any]:
    document: dict[str, Any] = {
        "flow": made.flow,
        "reason": made.reason,
        "detail": storable(made.detail),
        "at": at,
    }
    if made.facts:
        document["facts"] = {name: _fact(value) for name, value in made.facts.items()}
    return document


def _fact(value: Fact) -> Fact:
    if isinstance(value, datetime):
        return _text(value)
    if isinstance(value, str):
        text = storable(value)
        return text if len(text) <= FACT_CHARACTERS else text[: FACT_CHARACTERS - 1] + "…"
    return value


def unpack_decisions(items: str) -> list[Mapping[str, Any]]:
    """Read back what `pack_decisions` wrote, also in an earlier version."""
    return [_read(made) for made in orjson.loads(items)]


def _read(made: dict[str, Any]) -> Mapping[str, Any]:
    return {
        "flow": made["flow"],
        "reason": made["reason"] if "reason" in made else made["verdict"],
        "detail": made["detail"],
        "facts": made.get("facts", {}),
        "at": made.get("at"),
    }


def _text(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")
