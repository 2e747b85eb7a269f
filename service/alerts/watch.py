"""Notices what people are to be told, and decides when.

Failures are counted by the journal in the write that records them; here they are only looked at.
A look is one read where nothing has changed, and a service whose flows ask for nothing of this
never looks. Not here: what flows are expected to do (`expectations`), when an alert has news
(`news`), what a message says (`texts`), and how it is sent (`outbox`).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

from turnout.service.dispatch.attempts import until_writable
from turnout.service.domain.alerts import AlertRule, News
from turnout.service.domain.errors import JournalFull
from turnout.service.domain.event import mint_id
from turnout.service.intake.expiry import Expiry
from turnout.service.journal.contract import Alerts as AlertJournal
from turnout.service.journal.records import Ended, NewMessage, StoredAlert, Success
from turnout.service.project import AnyFlow
from turnout.service.telemetry.logs import get_logger
from turnout.service.telemetry.metrics import Metrics

from .expectations import Judge, Judged
from .news import QUIET, is_over, news_of, next_at, poll_at
from .outbox import Outbox
from .texts import document_of

log = get_logger("turnout.alerts")

_SHORTEST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 1.0
_PAUSE = 10
"""How long to wait between looks while failures keep coming, in looks: they read a backlog."""


class Alerts:
    """Opens, tells of and ends the alerts of the flows that are served."""

    def __init__(
        self,
        journal: AlertJournal,
        tasks: asyncio.TaskGroup,
        outbox: Outbox,
        metrics: Metrics,
        *,
        now: Callable[[], datetime],
        wall: Callable[[], datetime],
        is_paused: Callable[[str], bool],
        service: Callable[[], str],
    ) -> None:
        self._journal = journal
        self._tasks = tasks
        self.outbox = outbox
        self._open = metrics.alerts
        self._now = now
        self._wall = wall
        self._is_paused = is_paused
        self._service = service
        self._flows: Mapping[str, AnyFlow] = {}
        self._changed = False
        self._asked = False
        self._looking = False
        self._stopped = False
        self._next: datetime | None = None
        self._expiry = Expiry(self.recheck, now=now)

    @property
    def at_work(self) -> bool:
        """Whether something is looked at, or sent, now."""
        return self._looking or self.outbox.at_work

    @property
    def next_due_at(self) -> datetime | None:
        """When something may be told by time alone; what recovers is looked for besides."""
        instants = (self._next, self.outbox.next_due_at)
        return min((each for each in instants if each is not None), default=None)

    def serve(self, flows: Iterable[AnyFlow]) -> None:
        """Watch the flows that ask for it; those of before are let go at the next look."""
        self._flows = {flow.name: flow for flow in flows if flow.alert_rules}
        told = [flow for flow in self._flows.values() if flow.alerts]
        self._journal.count_failures([flow.name for flow in told], self.recheck)
        self.outbox.serve({each.name: each for flow in told for each in flow.alerts})
        self._changed = True

    def recheck(self) -> None:
        """Look now: a run has failed, the service starts, flows have changed, the clock was set."""
        if self._stopped or not (self._flows or self._changed):
            return
        self._asked = True
        if not self._looking:
            self._looking = True
            self._tasks.create_task(self._look_until_done())

    def clock_set(self) -> None:
        """Look again at all that waits for an instant."""
        self.recheck()
        self.outbox.recheck()

    def close(self) -> None:
        """Look at nothing any more, and begin to send nothing."""
        self._stopped = True
        self._expiry.close()
        self.outbox.close()

    async def stop(self) -> None:
        """Look at nothing any more; what is being sent has a few seconds to be taken."""
        self.close()
        await self.outbox.stop()

    # ---------------------------------------------------------------- looking

    async def _look_until_done(self) -> None:
        polls: list[datetime] = []
        try:
            while self._asked and not self._stopped:
                self._asked, began, pause = False, time.monotonic(), 0.0
                try:
                    polls = await self._look()
                    pause = _PAUSE * (time.monotonic() - began)
                except JournalFull:
                    await until_writable(self._journal)
                    self._asked = True
                if self._asked:
                    pause = min(max(pause, _SHORTEST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
                    await asyncio.sleep(pause)
        finally:
            self._looking = False
        if not self._stopped:
            self._expiry.arm([self._next, *polls])

    async def _look(self) -> list[datetime]:
        """Open, tell of and end alerts; returns when to look whether some are over."""
        if self._changed:
            await self._let_go()
        alerts = await self._journal.alerts()
        judged, successes = await self._judge(alerts)
        if any(not each.is_well for each in judged.values()):
            alerts = await self._journal.alerts()
        now, told, polls = self._now(), False, []
        instants: list[datetime | None] = [each.next_at for each in judged.values()]
        for alert in alerts:
            flow = self._flows.get(alert.flow)
            if flow is None or alert.rule not in flow.alert_rules:
                continue
            news = news_of(alert, now)
            if news is None and await self._is_over(alert, judged, successes, now):
                news = News.RECOVERED
            if news is not None:
                told = True
                await self._tell(alert, flow, news, now)
            if news is not News.RECOVERED:
                instants.append(next_at(alert, now))
                polls.append(poll_at(alert, now))
        self._next = min((each for each in instants if each is not None), default=None)
        self._count([alert for alert in alerts if alert.flow in self._flows])
        if told:
            self.outbox.recheck()
        return polls

    async def _let_go(self) -> None:
        """End alerts, expectations and messages of flows and channels that are gone."""
        kept = {name: flow.alert_rules for name, flow in self._flows.items()}
        channels = {each.name for flow in self._flows.values() for each in flow.alerts}
        self._changed = False
        if await self._is_something_open():
            ended = await self._journal.withdraw_alerts(kept, now=self._now())
            dropped = await self._journal.release_messages(channels, now=self._now())
            if ended or dropped:
                log.warning("alert.withdrawn", alerts=ended, messages=dropped)
            self.outbox.recheck()

    async def _is_something_open(self) -> bool:
        journal = self._journal
        return bool(
            await journal.alerts(limit=1)
            or await journal.pending_messages()
            or await journal.expectations()
        )

    async def _judge(
        self, alerts: Sequence[StoredAlert]
    ) -> tuple[dict[tuple[str, str], Judged], dict[str, list[Success]]]:
        """Judge what is expected of each flow, by flow and rule; returns also what was read."""
        expecting = [
            (flow, rule)
            for flow in self._flows.values()
            for rule in flow.alert_rules
            if rule is not AlertRule.FAILURE
        ]
        judged: dict[tuple[str, str], Judged] = {}
        successes: dict[str, list[Success]] = {}
        if not expecting:
            return judged, successes
        known = await self._journal.expectations()
        judge = Judge(self._journal, known, now=self._now(), wall=self._wall())
        by_rule = {(alert.flow, alert.rule): alert for alert in alerts}
        for flow, rule in expecting:
            if flow.name not in successes:
                successes[flow.name] = await self._journal.successes(flow.name)
            judged[flow.name, rule] = await judge.judge(
                flow, rule, successes[flow.name], by_rule.get((flow.name, rule))
            )
        return judged, successes

    async def _is_over(
        self,
        alert: StoredAlert,
        judged: Mapping[tuple[str, str], Judged],
        successes: dict[str, list[Success]],
        now: datetime,
    ) -> bool:
        if alert.rule is not AlertRule.FAILURE:
            return judged[alert.flow, alert.rule].is_well
        if now - alert.last_at < QUIET and alert.last_at <= now:
            return False  # no success counts yet
        if alert.flow not in successes:
            successes[alert.flow] = await self._journal.successes(alert.flow)
        return is_over(alert, successes[alert.flow], now)

    # ---------------------------------------------------------------- telling

    async def _tell(self, alert: StoredAlert, flow: AnyFlow, news: News, now: datetime) -> None:
        paused = self._is_paused(flow.name)
        document = document_of(alert, news, flow, now=now, service=self._service(), paused=paused)
        messages = [
            NewMessage(channel=each.name, key=mint_id(), document=document) for each in flow.alerts
        ]
        ended: Ended | None = "recovered" if news is News.RECOVERED else None
        if not await self._journal.tell(alert, messages, now=now, ended=ended):
            self._asked = True  # it has changed meanwhile: look again
            return
        if news is News.RECOVERED:
            log.info(
                "alert.recovered", alert=alert.id, flow=alert.flow, rule=alert.rule.value,
                cause=alert.cause, count=alert.count,
            )  # fmt: skip
        elif news is News.OPENED:
            log.warning(
                "alert.opened", alert=alert.id, flow=alert.flow, rule=alert.rule.value,
                cause=alert.cause,
            )  # fmt: skip

    def _count(self, alerts: Sequence[StoredAlert]) -> None:
        """Expose how many alerts are open."""
        self._open.clear()
        for flow in self._flows.values():
            for rule in flow.alert_rules:
                self._open.labels(flow.name, rule.value).set(0)
        for (name, rule), count in Counter((each.flow, each.rule) for each in alerts).items():
            self._open.labels(name, rule.value).set(count)
