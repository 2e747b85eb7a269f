"""Runs that have waited too long for their first start: they end as skipped (`start_timeout=`)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from turnout.service.domain.decisions import Reason
from turnout.service.domain.run import Run
from turnout.service.domain.units import format_duration
from turnout.service.flowcontrol.start_timeout import waited
from turnout.service.journal.contract import Work
from turnout.service.journal.records import Decision, Queued


class Late(NamedTuple):
    """A run that was taken from the queue of a flow and must not start, and its start timeout."""

    flow: str
    run: Queued
    timeout: timedelta


def is_late(run: Queued, timeout: timedelta, now: datetime) -> bool:
    """Whether a run was never claimed and has waited longer than a start timeout."""
    return not run.begun and waited(run, now) > timeout


async def end_late(journal: Work, late: Sequence[Late], now: datetime) -> list[Run]:
    """End late runs as skipped; returns those that had not ended otherwise meanwhile."""
    return await journal.skip({each.run.seq: _decision(each, now) for each in late}, now=now)


def _decision(late: Late, now: datetime) -> Decision:
    rule = f'start_timeout="{format_duration(late.timeout)}"'
    return Decision(
        late.flow,
        Reason.START_TIMEOUT,
        f"it had waited {format_duration(waited(late.run, now))} for its first start ({rule})",
        {"run": late.run.id, "rule": rule, "period": late.timeout.total_seconds()},
    )
