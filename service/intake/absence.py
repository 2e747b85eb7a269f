"""Whether an absence may be told now: whether the event would have been noticed.

While the trigger of the event that `absent(…)` waits for is paused or down, the windows of the flow
are suspended and keep the time they have left. A trigger that tells its progress (files, Kafka)
must have told all up to the deadline. Any other one must have listened since the window was opened,
or for a minute, in which those come again who found the service down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from turnout.service.dispatch.attempts import until_writable
from turnout.service.domain.errors import JournalFull
from turnout.service.domain.windows.absent import AWAITED
from turnout.service.domain.windows.window import Window
from turnout.service.journal.contract import Journal
from turnout.service.journal.records import Told
from turnout.service.project import AnyFlow
from turnout.service.telemetry.logs import get_logger

from .emitter import TriggerEmitter

log = get_logger("turnout")

SENDERS_RETURN = timedelta(seconds=60)
"""How long after a downtime those that send have to come again."""

_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(slots=True)
class _Watch:
    """The trigger of a flow with `absent(…)`, as it is now, and as the journal has been told.

    `listens_since` and `silent_since` are when it began or ceased to listen; `silent_since` is None
    also while it has not listened yet. `suspended` is since when the journal's windows are. `told`
    is the instant up to which it could tell, when that was last known.
    """

    flow: str
    trigger: str
    emitter: TriggerEmitter
    listens_since: datetime | None = None
    silent_since: datetime | None = None
    suspended: datetime | None = None
    may_be_suspended: bool = True
    told: datetime = _NEVER
    follows: bool = False


class Absence:
    """Watches the triggers of flows with `absent(…)`, and suspends their windows.

    `recheck` is called when windows that were held open may close now.
    """

    def __init__(
        self,
        journal: Journal,
        emitters: Callable[[], Mapping[str, TriggerEmitter]],
        tasks: asyncio.TaskGroup,
        *,
        now: Callable[[], datetime],
        recheck: Callable[[], None],
    ) -> None:
        self._journal = journal
        self._emitters = emitters
        self._tasks = tasks
        self._now = now
        self._recheck = recheck
        self._watches: dict[str, _Watch] = {}
        self._held: Collection[str] = ()

    def serve(self, flows: Iterable[AnyFlow]) -> None:
        """Watch the triggers of these flows, instead of those before."""
        before, self._watches = self._watches, {}
        for flow in flows:
            if flow.window is None or flow.window.kind != "absent":
                continue
            trigger = flow.window.triggers[AWAITED].name
            emitter = self._emitters()[trigger]
            known = before.get(flow.name)
            if known is not None and known.emitter is emitter:
                self._watches[flow.name] = known
                continue
            watch = self._watches[flow.name] = _Watch(flow.name, trigger, emitter)
            self._open(flow, flow.window)
            self._look(watch)
        for emitter in {watch.emitter for watch in self._watches.values()}:
            emitter.status.changed = partial(self._changed, emitter)

    def _open(self, flow: AnyFlow, window: Window) -> None:
        """Open the window of a flow without `after=`, if it is served for the first time."""
        if len(window.triggers) == 1 and window.per is None:
            self._tasks.create_task(self._opened(flow.name, window))

    async def _opened(self, flow: str, window: Window) -> None:
        now = self._now()
        due_at = now + timedelta(microseconds=window.settings.within)
        while True:
            try:
                await self._journal.open_window(flow, window.settings, due_at=due_at, now=now)
            except JournalFull:
                await until_writable(self._journal)
            else:
                break
        self._recheck()

    def close(self) -> None:
        """Watch nothing any more: what stops now is no trigger that is down."""
        self._watches = {}

    # ---------------------------------------------------------------- what may close now

    def told(self) -> Mapping[str, Told]:
        """Return for each flow which of its windows may close now."""
        now = self._now()
        return {
            flow: Told(
                self._told_to(watch, now),
                None if watch.emitter.parts.tells_progress else watch.listens_since,
            )
            for flow, watch in self._watches.items()
        }

    def _told_to(self, watch: _Watch, now: datetime) -> datetime:
        """Return the deadline up to which the event would have been noticed."""
        since, status = watch.listens_since, watch.emitter.status
        if since is None or watch.follows:
            return watch.told
        if watch.emitter.parts.tells_progress:
            if status.told_to is not None:
                watch.told = max(watch.told, status.told_to)
        elif now - since >= SENDERS_RETURN:
            watch.told = now
        return watch.told

    def held(self, flows: Collection[str]) -> datetime | None:
        """Take note of the flows whose windows are held open past their deadline.

        Returns when to ask again if nothing changes before; None for never.
        """
        self._held = flows
        now = self._now()
        waits = [
            watch.listens_since + SENDERS_RETURN
            for flow in flows
            if (watch := self._watches.get(flow)) is not None
            and watch.listens_since is not None
            and not watch.emitter.parts.tells_progress
        ]
        return min((at for at in waits if at > now), default=None)

    def suspended(self) -> Mapping[str, str]:
        """Return for each flow why its windows do not close now; nothing of those that may."""
        found: dict[str, str] = {}
        for flow, watch in self._watches.items():
            status = watch.emitter.status
            if status.paused:
                found[flow] = f"trigger {watch.trigger} is paused"
            elif not status.listens:
                found[flow] = f"trigger {watch.trigger} is down: {status.problem}"
            elif flow in self._held and watch.emitter.parts.tells_progress:
                found[flow] = f"trigger {watch.trigger} has not read up to the deadline yet"
            elif flow in self._held:
                found[flow] = f"senders of trigger {watch.trigger} have a minute to come again"
        return found

    # ---------------------------------------------------------------- changes

    def _changed(self, emitter: TriggerEmitter) -> None:
        """Look again at a trigger: it is up, down, paused, resumed, or has told its progress."""
        for watch in self._watches.values():
            if watch.emitter is emitter:
                self._look(watch)

    def _look(self, watch: _Watch) -> None:
        status, now = watch.emitter.status, self._now()
        if status.listens:
            if watch.listens_since is None:
                watch.listens_since, watch.silent_since = now, None
        elif watch.listens_since is not None or (
            watch.silent_since is None and not status.starting
        ):
            self._told_to(watch, now)
            watch.listens_since, watch.silent_since = None, now
        elif status.paused_since is not None and watch.silent_since is None:
            watch.silent_since = min(status.paused_since, now)  # since before the service started
        if self._is_behind(watch) and not watch.follows:
            watch.follows = True
            self._tasks.create_task(self._follow(watch))
        elif watch.flow in self._held:
            self._recheck()

    def _is_behind(self, watch: _Watch) -> bool:
        """Whether the journal's windows are not as the trigger is."""
        if watch.listens_since is not None:
            return watch.may_be_suspended
        return watch.silent_since is not None and watch.suspended is None

    async def _follow(self, watch: _Watch) -> None:
        """Suspend or resume the windows of a flow, until the journal is as the trigger is."""
        try:
            while self._is_behind(watch):
                try:
                    await self._write(watch)
                except JournalFull:
                    await until_writable(self._journal)
        finally:
            watch.follows = False
        self._recheck()

    async def _write(self, watch: _Watch) -> None:
        silent, listens = watch.silent_since, watch.listens_since
        if silent is not None:
            count = await self._journal.suspend_windows(watch.flow, now=silent)
            watch.suspended, watch.may_be_suspended = silent, True
            if count:
                log.info("windows.suspended", flow=watch.flow, trigger=watch.trigger, count=count)
        elif listens is not None:
            count = await self._journal.resume_windows(
                watch.flow, since=watch.suspended, now=listens
            )
            watch.suspended, watch.may_be_suspended = None, False
            if count:
                log.info("windows.resumed", flow=watch.flow, trigger=watch.trigger, count=count)
