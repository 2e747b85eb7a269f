"""What a backtest could not see: what the journal does not keep of the events of a trigger."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from turnout.service.domain.trigger import parts_of
from turnout.service.domain.units import format_duration
from turnout.service.project import AnyFlow

from .report import KeepTimes, Report, Seen


def tell_what_is_not_seen(report: Report, flow: AnyFlow, keep_times: KeepTimes) -> None:
    """Add to each trigger what the journal does not keep of its events."""
    samples = {trigger.name: parts_of(trigger).unmatched_sample for trigger in flow.triggers}
    for name in samples:
        report.triggers.setdefault(name, Seen())
    age = report.until - report.since
    for name, seen in report.triggers.items():
        seen.notes += _notes(samples.get(name), age, keep_times, seen)


def _notes(sample: int | None, age: timedelta, keep_times: KeepTimes, seen: Seen) -> Iterator[str]:
    if not seen.events:
        yield "no events of it are stored"
    if sample is not None:
        yield f"of the events that started nothing, one in {sample:,} is kept"
    if keep_times.unmatched < age:
        span = format_duration(keep_times.unmatched)
        yield f"events that started nothing are kept for {span}"
    if keep_times.finished < age:
        span = format_duration(keep_times.finished)
        yield f"events whose runs have ended are kept for {span}"
