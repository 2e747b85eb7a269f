"""What a backtest could not see: what the journal does not keep of the events of a trigger."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from turnout.service.domain.trigger import parts_of
from turnout.service.domain.units import format_duration
from turnout.service.project import AnyFlow

from .report import Kept, Report, Seen


def tell_what_is_not_seen(report: Report, flow: AnyFlow, kept: Kept) -> None:
    """Add to each trigger what the journal does not keep of its events."""
    samples = {trigger.name: parts_of(trigger).unmatched_sample for trigger in flow.triggers}
    for name in samples:
        report.triggers.setdefault(name, Seen())
    age = report.until - report.since
    for name, seen in report.triggers.items():
        seen.notes += _notes(samples.get(name), age, kept, seen)


def _notes(sample: int | None, age: timedelta, kept: Kept, seen: Seen) -> Iterator[str]:
    if not seen.events:
        yield "no events of it are stored"
    if sample is not None:
        yield f"of the events that started nothing, one in {sample:,} is kept"
    if kept.unmatched < age:
        span = format_duration(kept.unmatched)
        yield f"events that started nothing are kept for {span}"
    if kept.finished < age:
        span = format_duration(kept.finished)
        yield f"events whose runs have ended are kept for {span}"
