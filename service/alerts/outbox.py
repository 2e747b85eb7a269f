"""Sends messages: each channel on its own, again until it is taken, at least once under one key.

A message is claimed in the journal before it is sent, and ended there when it was taken; one that
was cut off in between is sent again. At most 20 an hour go to one channel; what comes meanwhile is
held and sent as one summary, and recoveries that come together are one message. What nobody takes
for a day is dropped. Not here: what a channel is (`handlers`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta

from turnout.service.dispatch.attempts import until_writable
from turnout.service.domain import errors
from turnout.service.domain.alerts import Channel, Message
from turnout.service.domain.errors import FOREIGN, JournalFull
from turnout.service.domain.retry import asked_for
from turnout.service.domain.units import format_duration
from turnout.service.governance import secrets
from turnout.service.intake.expiry import Expiry
from turnout.service.journal.contract import Alerts
from turnout.service.journal.records import StoredMessage, Taken
from turnout.service.telemetry.logs import get_logger
from turnout.service.telemetry.metrics import Metrics

from .texts import message_of

log = get_logger("turnout.alerts")

MOST_MESSAGES = 20
PERIOD = timedelta(hours=1)
GIVE_UP_AFTER = timedelta(days=1)
LONGEST_ASKED = timedelta(hours=1)
"""The longest that a channel may ask to be left alone (`Retry-After`): people are to hear today."""

_TIMEOUT_SECONDS = 30.0
_CLAIM = timedelta(minutes=2)
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 600.0
_MOST_DOUBLINGS = 10
_STOP_SECONDS = 5.0
_MOST_CHARACTERS = 300

Deliver = Callable[[Channel, Message], Awaitable[None]]


async def deliver(channel: Channel, message: Message) -> None:
    """Have a channel send a message."""
    await channel.send(message)


class Outbox:
    """Sends the messages that wait in the journal."""

    def __init__(
        self,
        journal: Alerts,
        tasks: asyncio.TaskGroup,
        metrics: Metrics,
        *,
        now: Callable[[], datetime],
        wall: Callable[[], datetime],
        deliver: Deliver = deliver,
    ) -> None:
        self._journal = journal
        self._tasks = tasks
        self._sent = metrics.alert_messages
        self._now = now
        self._wall = wall
        self._deliver = deliver
        self._channels: Mapping[str, Channel] = {}
        self._working: dict[str, asyncio.Task[None]] = {}
        self._asked: set[str] = set()
        self._next: dict[str, datetime | None] = {}
        self._asked_to_wait_until: dict[str, datetime] = {}
        self._expiry = Expiry(self.recheck, now=now)
        self._stopped = False

    @property
    def at_work(self) -> bool:
        """Whether messages are being sent now."""
        return bool(self._working)

    @property
    def next_due_at(self) -> datetime | None:
        """When the next message is to be sent; None if none waits."""
        return min((each for each in self._next.values() if each is not None), default=None)

    def serve(self, channels: Mapping[str, Channel]) -> None:
        """Send to these channels, by name, from now on."""
        self._channels = channels

    def recheck(self) -> None:
        """Send what is due: there are new messages, or a wait is over."""
        for name in self._channels if not self._stopped else ():
            self._asked.add(name)
            if name not in self._working:
                self._working[name] = self._tasks.create_task(self._send_all(name))

    def close(self) -> None:
        """Begin to send nothing more."""
        self._stopped = True
        self._expiry.close()

    async def stop(self) -> None:
        """Send nothing more; what is being sent has a few seconds to be taken."""
        self.close()
        working = list(self._working.values())
        if working:
            _, left = await asyncio.wait(working, timeout=_STOP_SECONDS)
            for task in left:
                task.cancel()

    async def _send_all(self, name: str) -> None:
        try:
            while name in self._asked and not self._stopped:
                self._asked.discard(name)
                await self._send_due(name)
        finally:
            self._working.pop(name, None)
        if not self._stopped:
            self._expiry.arm(self._next.values())

    async def _send_due(self, name: str) -> None:
        while not self._stopped and (channel := self._channels.get(name)) is not None:
            asked = self._asked_to_wait_until.get(name)
            if asked is not None and self._now() < asked:
                self._next[name] = asked
                return
            taken = await self._take(name)
            if taken.summarised:
                self._sent.labels(_kind(name), "summarised").inc(taken.summarised)
            self._next[name] = taken.next_at
            if taken.message is None:
                return
            await self._send(channel, taken.message)

    async def _take(self, name: str) -> Taken:
        while True:
            now = self._now()
            try:
                return await self._journal.take_message(
                    name, now=now, until=now + _CLAIM, most=MOST_MESSAGES, since=now - PERIOD
                )
            except JournalFull:
                await until_writable(self._journal)

    async def _send(self, channel: Channel, stored: StoredMessage) -> None:
        held_after = f"after {format_duration(PERIOD)}" if stored.is_last else None
        message = message_of(stored.key, stored.document, held_after=held_after)
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                await self._deliver(channel, message)
        except (*FOREIGN, asyncio.CancelledError) as error:  # a channel may be an author's
            if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                raise
            await self._failed(channel, stored, error)
            return
        with suppress(JournalFull):  # then it is sent again when there is space
            await self._journal.message_sent(stored.seq, now=self._now())
        self._sent.labels(_kind(channel.name), "sent").inc()
        if stored.error:
            after = format_duration(self._now() - stored.made_at)
            log.info("alert.sent", channel=channel.name, tries=stored.tries, after=after)

    async def _failed(self, channel: Channel, stored: StoredMessage, error: BaseException) -> None:
        words = errors.message_of(error) if isinstance(error, Exception) else ""
        text = secrets.mask(words or type(error).__name__)[:_MOST_CHARACTERS]
        now = self._now()
        asked = min(asked_for(error, now=self._wall()), LONGEST_ASKED)
        if asked:
            self._asked_to_wait_until[channel.name] = now + asked
        seconds = min(
            _FIRST_WAIT_SECONDS * 2 ** min(stored.tries - 1, _MOST_DOUBLINGS), _LONGEST_WAIT_SECONDS
        )
        is_old = now - stored.made_at >= GIVE_UP_AFTER
        due_at = None if is_old else now + max(asked, timedelta(seconds=seconds))
        with suppress(JournalFull):  # the claim ends by itself
            await self._journal.message_failed(stored.seq, error=text, due_at=due_at)
        self._sent.labels(_kind(channel.name), "dropped" if is_old else "failed").inc()
        if is_old:
            log.error("alert.dropped", channel=channel.name, tries=stored.tries, error=text)
        elif not stored.error or _is_power_of_ten(stored.tries):
            log.warning("alert.not_sent", channel=channel.name, tries=stored.tries, error=text)


def _is_cancelled() -> bool:
    """Whether this task was told to end, and did not get the error from what it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _is_power_of_ten(number: int) -> bool:
    return str(number).rstrip("0") == "1"


def _kind(name: str) -> str:
    """Return the kind of a channel: the first word of its name."""
    return name.partition(":")[0]
