"""A channel that is an author's may raise anything: its message goes again, the service goes on.

It goes again when the channel asks for it, and the log says what does not arrive.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from tests.journal.test_sqlite import opened
from tests.support.journal_alerts import told
from tests.support.journal_contract import NOW, at
from turnout.service.alerts.outbox import GIVE_UP_AFTER, LONGEST_ASKED, Outbox
from turnout.service.client import Unavailable
from turnout.service.domain.alerts import Message
from turnout.service.domain.units import utc_now
from turnout.service.journal.sqlite.journal import SqliteJournal
from turnout.service.telemetry.metrics import Metrics


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write out the short documents of the journal's tests."""
    monkeypatch.setattr("turnout.service.alerts.outbox.message_of", written)


def written(key: str, document: Mapping[str, object], **_: object) -> Message:
    return Message(key, "title", "text", document)


@dataclass
class Breaks:
    """A channel whose first try raises."""

    error: BaseException
    name: str = "chat"
    tries: list[str] = field(default_factory=list)
    sent: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, message: Message) -> None:
        self.tries.append(message.key)
        if len(self.tries) == 1:
            raise self.error
        self.sent.set()


class Unreadable(Exception):
    """Raises when it is asked for its message."""

    def __str__(self) -> str:
        raise ValueError("no words")


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), Unreadable(), SystemExit(3), asyncio.CancelledError()],
    ids=lambda each: type(each).__name__,
)
async def test_what_a_channel_raises_ends_nothing_and_the_message_goes_again(
    tmp_path: Path, error: BaseException
) -> None:
    channel = Breaks(error)
    async with opened(tmp_path) as journal:
        await told(journal, "k", seconds=(utc_now() - NOW).total_seconds())
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            outbox = Outbox(journal, tasks, Metrics(), now=utc_now, wall=utc_now)
            outbox.serve({channel.name: channel})
            outbox.recheck()
            await channel.sent.wait()
            await outbox.stop()
    assert channel.tries == ["k", "k"]


async def test_a_service_that_stops_waits_for_no_channel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = asyncio.Event()

    class Hangs:
        name = "chat"

        async def send(self, message: Message) -> None:
            began.set()
            await asyncio.Event().wait()

    monkeypatch.setattr("turnout.service.alerts.outbox._STOP_SECONDS", 0.01)
    async with opened(tmp_path) as journal:
        await told(journal, "k", seconds=(utc_now() - NOW).total_seconds())
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            outbox = Outbox(journal, tasks, Metrics(), now=utc_now, wall=utc_now)
            outbox.serve({"chat": Hangs()})
            outbox.recheck()
            await began.wait()
            await outbox.stop()
        assert await journal.pending_messages() == {"chat": 1}, "it goes again after the next start"


# ---------------------------------------------------------------- when it goes again


class Sending:
    """An outbox with a journal, and a channel that raises `error` while there is one."""

    name = "chat"

    def __init__(self, journal: SqliteJournal, tasks: asyncio.TaskGroup) -> None:
        self.journal = journal
        self.seconds = 0.0
        self.error: Exception | None = None
        self.tried: list[tuple[str, float]] = []
        self.outbox = Outbox(
            journal, tasks, Metrics(), now=lambda: at(self.seconds), wall=lambda: at(self.seconds)
        )
        self.outbox.serve({self.name: self})

    async def send(self, message: Message) -> None:
        self.tried.append((message.key, self.seconds))
        if self.error is not None:
            raise self.error

    async def look(self, seconds: float) -> None:
        """Send what is due when so much time has passed."""
        self.seconds = seconds
        self.outbox.recheck()
        while self.outbox.at_work:  # noqa: ASYNC110  no notification exists
            await asyncio.sleep(0.001)

    async def look_until(self, seconds: float) -> None:
        """Send what is due until then, each when it is."""
        due_at = self.outbox.next_due_at
        while due_at is not None and due_at <= at(seconds):
            await self.look((due_at - NOW).total_seconds())
            due_at = self.outbox.next_due_at


@asynccontextmanager
async def sending(folder: Path) -> AsyncIterator[Sending]:
    async with (
        opened(folder) as journal, asyncio.timeout(20), asyncio.TaskGroup() as tasks,
    ):  # fmt: skip
        made = Sending(journal, tasks)
        yield made
        await made.outbox.stop()


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ("30", 30.0),
        (format_datetime(at(90.0), usegmt=True), 90.0 - NOW.microsecond / 1e6),
        ("86400", LONGEST_ASKED.total_seconds()),
        ("soon", 1.0),
        (None, 1.0),
    ],
)
async def test_a_channel_that_asks_for_time_gets_it(
    tmp_path: Path, asked: str | None, seconds: float
) -> None:
    async with sending(tmp_path) as it:
        it.error = Unavailable("answered 429", retry_after=asked)
        await told(it.journal, "a")
        await it.look(0)
        it.error = None
        await told(it.journal, "b", seconds=0.5, flow="ship")
        await it.look(0.5)
        await it.look_until(LONGEST_ASKED.total_seconds() + 1)
        if seconds == 1.0:  # asks for nothing: other messages need not wait
            assert it.tried == [("a", 0), ("b", 0.5), ("a", 1.0)]
        else:
            assert it.tried == [("a", 0), ("a", pytest.approx(seconds)), ("b", it.tried[1][1])]


def logged(capfd: pytest.CaptureFixture[str], *names: str) -> list[tuple[Any, ...]]:
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line[:1] == "{"]
    return [
        tuple(each.get(name) for name in names)
        for each in lines
        if each["message"].startswith("alert.")
    ]


async def test_what_does_not_arrive_is_logged_ever_more_rarely_and_so_is_that_it_did(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with sending(tmp_path) as it:
        it.error = OSError("no answer")
        await told(it.journal, "late")
        await it.look(0)
        await it.look_until(70_000)
        it.error = None
        await it.look_until(80_000)
        await told(it.journal, "at once", seconds=80_000, flow="ship")
        await it.look(80_000)
        *failed, sent = logged(capfd, "message", "channel", "tries", "error", "after")
        assert failed == [
            ("alert.not_sent", "chat", tries, "no answer", None) for tries in (1, 10, 100)
        ]
        assert sent[:3] == ("alert.sent", "chat", len(it.tried) - 1)
        assert sent[4].startswith("19h")
        assert it.tried[-1] == ("at once", 80_000)


async def test_what_nobody_takes_for_a_day_is_dropped_and_logged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with sending(tmp_path) as it:
        it.error = OSError("no answer")
        await told(it.journal, "k")
        await it.look(0)
        await it.look_until((GIVE_UP_AFTER + timedelta(hours=1)).total_seconds())
        assert it.outbox.next_due_at is None
        assert await it.journal.pending_messages() == {}
        ((level, error),) = logged(capfd, "level", "error")[3:]
        assert (level, error) == ("error", "no answer")
