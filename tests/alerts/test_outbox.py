"""A channel that is an author's may raise anything: its message goes again, the service goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.journal.test_sqlite import opened
from tests.support.journal_alerts import told
from tests.support.journal_contract import NOW
from turnout.service.alerts.outbox import Outbox
from turnout.service.domain.alerts import Message
from turnout.service.domain.units import utc_now
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
            outbox = Outbox(journal, tasks, Metrics(), now=utc_now)
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
            outbox = Outbox(journal, tasks, Metrics(), now=utc_now)
            outbox.serve({"chat": Hangs()})
            outbox.recheck()
            await began.wait()
            await outbox.stop()
        assert await journal.pending_messages() == {"chat": 1}, "it goes again after the next start"
