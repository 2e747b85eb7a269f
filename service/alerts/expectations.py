"""What flows are expected to do, judged by the journal alone.

So it holds also when nothing has started, the flow is paused, or the service was down: what was
missed meanwhile is found at the next look. Not here: what people are told of it (`news`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile

from turnout.service.domain.alerts import AlertRule
from turnout.service.domain.deadline import Deadline
from turnout.service.domain.units import format_duration, to_the_second
from turnout.service.journal.contract import Alerts
from turnout.service.journal.records import Expectation, StoredAlert, Success
from turnout.service.project import AnyFlow

from .news import QUIET

_KEEP_UP = timedelta(hours=6)
"""How often the last success is noted at least, which retention may delete."""

_MOST_MISSED = 31
_CLOCK_WAS_AHEAD = timedelta(days=1)
_STILL = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Judged:
    """Whether a flow does what is expected, and when to look again by time alone."""

    is_well: bool
    next_at: datetime | None


class Judge:
    """Judges flows at one instant; `wall` is what the clock of deadlines shows."""

    def __init__(
        self,
        journal: Alerts,
        known: Mapping[tuple[str, str], Expectation],
        *,
        now: datetime,
        wall: datetime,
    ) -> None:
        self._journal = journal
        self._known = known
        self._now = now
        self._wall = wall

    async def judge(
        self,
        flow: AnyFlow,
        rule: AlertRule,
        successes: Sequence[Success],
        alert: StoredAlert | None,
    ) -> Judged:
        """Judge a flow by one rule, and open its alert if need be; `alert` is the open one."""
        if rule is AlertRule.FINISH_WITHIN:
            assert flow.finish_within is not None
            return await self._finish_within(flow, flow.finish_within, alert)
        if rule is AlertRule.DEADLINE:
            assert flow.deadline is not None
            return await self._deadline(flow, flow.deadline, successes)
        assert flow.expect_every is not None
        return await self._expect_every(flow, flow.expect_every, successes, alert)

    async def _expect_every(
        self,
        flow: AnyFlow,
        every: timedelta,
        successes: Sequence[Success],
        alert: StoredAlert | None,
    ) -> Judged:
        now, rule = self._now, AlertRule.EXPECT_EVERY
        known = self._known.get((flow.name, rule), Expectation(now, now))
        last = min(max([known.seen_at, *(each.finished_at for each in successes)]), now)
        is_new = (flow.name, rule) not in self._known
        if is_new or last - known.seen_at >= _KEEP_UP or last < known.seen_at:
            await self._journal.expect(flow.name, rule, since=min(known.since, now), seen_at=last)
        due = last + every
        if now >= due and alert is None:
            what = "it was first expected" if last == known.since else "the last one has succeeded"
            await self._journal.raise_alert(
                flow.name,
                rule,
                now=now,
                detail=f"no run has succeeded for {_words(now - last)}: {what} at "
                f"{to_the_second(last)}",
                seen_at=last,
            )
        return Judged(now < due, min(due, now + _KEEP_UP) if now < due else None)

    async def _deadline(
        self, flow: AnyFlow, deadline: Deadline, successes: Sequence[Success]
    ) -> Judged:
        wall, rule = self._wall, AlertRule.DEADLINE
        last = deadline.latest(wall)
        known = self._known.get((flow.name, rule))
        if known is None or known.seen_at > wall + _CLOCK_WAS_AHEAD:
            await self._journal.expect(flow.name, rule, since=self._now, seen_at=last)
        else:
            seen_at = known.seen_at
            passed = takewhile(lambda each: each > seen_at, deadline.back_from(wall))
            judged = [each for each, _ in zip(passed, range(_MOST_MISSED), strict=False)]
            missed = [each for each in judged if not _is_met(deadline, each, successes)]
            if missed:
                since = to_the_second(deadline.day_before(missed[0]))
                await self._journal.raise_alert(
                    flow.name,
                    rule,
                    now=self._now,
                    add=len(missed),
                    detail=f"no run that was accepted since {since} had succeeded by "
                    f"{to_the_second(missed[0])}",
                    seen_at=last,
                )
            elif judged:
                await self._journal.expect(flow.name, rule, since=known.since, seen_at=last)
        came = deadline.day_before(last)
        is_well = any(each.accepted_at > came for each in successes)
        return Judged(is_well, self._now + (deadline.next_after(wall) - wall))

    async def _finish_within(
        self, flow: AnyFlow, within: timedelta, alert: StoredAlert | None
    ) -> Judged:
        now = self._now
        late = await self._journal.late_runs(flow.name, before=now - within)
        if not late.count:
            due = now if late.due_at is None else min(late.due_at, now)  # one may come meanwhile
            is_well = alert is None or now - alert.last_at >= QUIET or alert.last_at > now
            return Judged(is_well, max(due, now - within) + within)
        if alert is None or late.count > alert.count or now - alert.last_at >= _STILL:
            await self._journal.raise_alert(
                flow.name,
                AlertRule.FINISH_WITHIN,
                now=now,
                add=0,
                at_least=late.count,
                run_id=late.first,
                detail=f"{_runs(late.count)} not ended within {_words(within)}",
            )
        return Judged(False, None)


def _is_met(deadline: Deadline, instant: datetime, successes: Sequence[Success]) -> bool:
    since = deadline.day_before(instant)
    return any(since < each.accepted_at <= instant for each in successes)


def _runs(count: int) -> str:
    return "a run has" if count == 1 else f"{count} runs have"


def _words(length: timedelta) -> str:
    """Return a duration to the second."""
    return format_duration(timedelta(seconds=round(length.total_seconds())))
