"""When people are told of an alert: at once, on tenfold growth or after a day, and at its end.

Pure: an alert and an instant in, a decision out.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from turnout.service.domain.alerts import AlertRule, News
from turnout.service.journal.records import StoredAlert, Success

GROWTH = 10
REPEATED_AFTER = timedelta(days=1)
QUIET = timedelta(minutes=5)
"""How long a cause must not have shown before its flow can have recovered from it."""

_CLOCK_WAS_AHEAD = timedelta(hours=1)
_SHORTEST_POLL = timedelta(seconds=15)
_LONGEST_POLL = timedelta(minutes=5)


def news_of(alert: StoredAlert, now: datetime) -> News | None:
    """Return what there is to tell of an open alert, None if nothing."""
    if alert.told_at is None:
        return News.OPENED
    if alert.is_muted(now):
        return None
    if alert.count >= alert.told_count * GROWTH:
        return News.GROWN
    is_on = alert.rule is not AlertRule.FAILURE or alert.last_at > alert.told_at
    if is_on and now >= _repeated_at(alert, alert.told_at, now):
        return News.REPEATED
    return None


def _repeated_at(alert: StoredAlert, told_at: datetime, now: datetime) -> datetime:
    """Return when to tell of an alert again: at once if it was told under a clock ahead."""
    return now if told_at > now + _CLOCK_WAS_AHEAD else told_at + REPEATED_AFTER


def next_at(alert: StoredAlert, now: datetime) -> datetime | None:
    """Return when an open alert may have news, or be over, by time alone."""
    told_at = now if alert.told_at is None else alert.told_at
    quiet_at = alert.last_at + QUIET
    if now < quiet_at and alert.rule in (AlertRule.FAILURE, AlertRule.FINISH_WITHIN):
        return quiet_at
    if alert.is_muted(now):
        return alert.muted_until
    if alert.rule is AlertRule.FAILURE and alert.last_at <= told_at:
        return None
    return _repeated_at(alert, told_at, now)


def is_over(alert: StoredAlert, successes: Iterable[Success], now: datetime) -> bool:
    """Whether a flow has recovered from a failure.

    A run that began after the last one has succeeded, and it has not shown since for a while.
    """
    last = alert.last_at if alert.last_at <= now else now - QUIET  # under a clock ahead
    return now - last >= QUIET and any(each.started_at >= last for each in successes)


def poll_at(alert: StoredAlert, now: datetime) -> datetime:
    """Return when to look whether an open alert is over: ever more rarely."""
    return now + min(max((now - alert.last_at) / 10, _SHORTEST_POLL), _LONGEST_POLL)
