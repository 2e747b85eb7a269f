"""Messages about alerts: claimed, sent at least once under one key, and folded when there are many.

Each function writes inside the transaction it is called in. Not here: what a message says, and how
it is sent (`service/alerts`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import apsw
import orjson

from turnout.service.domain.alerts import News
from turnout.service.domain.event import mint_id
from turnout.service.journal.records import StoredMessage, Taken

from .statements import load
from .values import dump, instant, instant_or_none, micros

_SQL = load("alerts")

_LONGEST_WAIT = 86_400_000_000
"""Microseconds: nothing that waits to be sent waits longer, but under a clock that was ahead."""


def take(
    connection: apsw.Connection,
    channel: str,
    *,
    now: datetime,
    until: datetime,
    most: int,
    since: datetime,
) -> Taken:
    """Claim the next message of a channel, unless it has had the most of its time."""
    at = micros(now)
    window: Any = connection.execute(_SQL["sent_since"], (channel, micros(since), at, most))
    sent, oldest = window.fetchone()
    if sent >= most:
        connection.execute(_SQL["hold"], (channel,))
        waits = connection.execute(_SQL["next_due"], (channel,)).get is not None
        return Taken(None, instant(oldest) + (now - since) if waits else None)
    summarised = _fold(connection, channel, at)
    row: Any = connection.execute(
        _SQL["next_message"], (channel, at, at + _LONGEST_WAIT)
    ).fetchone()
    if row is None:
        return Taken(None, instant_or_none(connection.execute(_SQL["next_due"], (channel,)).get))
    seq, alert, key, document, made_at, tries, error = row
    connection.execute(_SQL["claim"], (seq, micros(until)))
    message = StoredMessage(
        seq=seq,
        alert=alert,
        channel=channel,
        key=key,
        document=orjson.loads(document),
        made_at=instant(made_at),
        tries=tries + 1,
        error=error,
        is_last=sent == most - 1,
    )
    return Taken(message, summarised=summarised)


def _fold(connection: apsw.Connection, channel: str, at: int) -> int:
    """Make one message of those that were held, and of recoveries; returns of how many."""
    folded = 0
    for which in ("held", "recoveries"):
        rows: list[Any] = connection.execute(_SQL[which], (channel,)).fetchall()
        if len(rows) < 2:
            continue
        parts: list[Any] = []
        for seq, document in rows:
            connection.execute(_SQL["end_message"], (seq, at, "summarised"))
            read = orjson.loads(document)
            parts += read["parts"] if read["news"] == News.SUMMARY else [read]
        summary = dump({"news": News.SUMMARY.value, "parts": parts})
        connection.execute(_SQL["add_message"], (0, channel, mint_id(), summary, at))
        folded += len(rows)
    return folded


def sent(connection: apsw.Connection, seq: int, now: datetime) -> None:
    """Note that a message was sent."""
    connection.execute(_SQL["end_message"], (seq, micros(now), "sent"))


def put_off(connection: apsw.Connection, seq: int, error: str, due_at: datetime | None) -> None:
    """Note why a message was not sent, and when to try again; None drops it."""
    if due_at is None:
        connection.execute(_SQL["drop_message"], (seq, error))
    else:
        connection.execute(_SQL["put_off"], (seq, error, micros(due_at)))


def prune(connection: apsw.Connection, before: int, limit: int) -> int:
    """Delete alerts and messages that have ended; returns rows."""
    deleted = 0
    for which in ("prune", "prune_messages"):
        connection.execute(_SQL[which], (before, limit))
        deleted += connection.changes()
    return deleted
