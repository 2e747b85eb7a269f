"""Random redeliveries over restarts and prunings, against a dictionary of what was accepted."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Say
from tests.support.running import Running, running
from turnout import Event, flow, webhook
from turnout.service.domain.trigger import Receipt
from turnout.service.journal.records import Filter
from turnout.testing import webhook_event
from turnout.triggers.webhook import WebhookTrigger

START = datetime(2026, 11, 28, tzinfo=UTC)
SETTING = timedelta(hours=2)
IDS = 6
BODIES = 2


def order_id(event: Event) -> Any:
    return event.data["id"]


SHORT = webhook("/short", id=order_id, dedupe="30m")
LONG = webhook("/long", id=order_id, dedupe="9h")
PLAIN = webhook("/plain", id=order_id)
HEADER = webhook("/header")
WINDOWS = {
    SHORT: timedelta(minutes=30),
    LONG: timedelta(hours=9),
    PLAIN: SETTING,
    HEADER: SETTING,
}


NOTHING = {trigger: timedelta(microseconds=trigger.dedupe is not None) for trigger in WINDOWS}
"""A window of a trigger's own is over at its end, that of the setting just after."""


@flow(on=[SHORT, LONG, PLAIN, HEADER])
async def takes(data: dict[str, Any]) -> str:
    return f"{data['id']} {data['body']}"


@dataclass
class Accepted:
    """What the dictionary knows of an accepted delivery."""

    body: int
    at: datetime
    runs: tuple[str, ...]


@dataclass
class Model:
    """What should be remembered now, and every run that should ever have been started."""

    now: datetime = START
    known: dict[tuple[str, int], Accepted] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=lambda: {"new": 0, "duplicate": 0, "conflict": 0})

    def check(self, trigger: WebhookTrigger, number: int, body: int, receipt: Receipt) -> None:
        """Compare what a delivery was told with what the dictionary says."""
        first = self.known.get((trigger.name, number))
        if first is None:
            assert not receipt.duplicate and not receipt.conflict and len(receipt.runs) == 1
            self.known[trigger.name, number] = Accepted(body, self.now, receipt.runs)
            (run,) = receipt.runs
            assert run not in self.runs
            self.runs[run] = f"{number} {body}"
            self.told["new"] += 1
            return
        assert (receipt.duplicate, receipt.conflict) == (first.body == body, first.body != body)
        assert receipt.runs == first.runs
        self.told["duplicate" if receipt.duplicate else "conflict"] += 1

    def prune(self) -> None:
        """Forget what is past its window."""
        for trigger, window in WINDOWS.items():
            for number in range(IDS):
                kept = self.known.get((trigger.name, number))
                if kept is not None and self.now - kept.at > window - NOTHING[trigger]:
                    del self.known[trigger.name, number]


def delivery(trigger: WebhookTrigger, number: int, body: int) -> Event:
    headers = {"Idempotency-Key": str(number)} if trigger is HEADER else {}
    return webhook_event(trigger, {"id": number, "body": body}, headers=headers)


async def deliver(chance: random.Random, service: Running, model: Model) -> None:
    """Deliver a few events through one trigger, in one call; an id may come twice in it."""
    trigger = chance.choice([*WINDOWS])
    drawn = [
        (chance.randrange(IDS), chance.choices(range(BODIES), (9, 1))[0])
        for _ in range(chance.choice((1, 1, 2, 5)))
    ]
    emitter = service.process.emitters[trigger.name]
    receipts = await emitter([delivery(trigger, *one) for one in drawn])
    for one, receipt in zip(drawn, receipts, strict=True):
        model.check(trigger, *one, receipt)


async def prune(service: Running, model: Model) -> None:
    never = START - timedelta(days=1)
    while await service.process.journal.prune(
        finished_before=never, failed_before=never, unmatched_before=never,
        dedupe_before=model.now - SETTING, now=model.now, limit=3,
    ):  # fmt: skip
        pass
    model.prune()


async def history(seed: int, folder: Path) -> Model:
    """Do things at random; every answer is checked on the way, and all runs at the end."""
    chance, model = random.Random(seed), Model()

    def clock() -> datetime:
        return model.now

    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(running(folder, [takes], now=clock))
        for _ in range(chance.randrange(10, 60)):
            step = chance.random()
            if step < 0.75:
                await deliver(chance, service, model)
            elif step < 0.85:
                model.now += timedelta(minutes=chance.choice((1, 10, 30, 120, 300)))
            elif step < 0.95:
                await prune(service, model)
            else:
                await stack.aclose()
                service = await stack.enter_async_context(running(folder, [takes], now=clock))
        runs = await service.all_finished()
        assert {run.id: (run.result or b"").decode().strip('"') for run in runs} == model.runs
        for (trigger, number), kept in model.known.items():
            found = await service.process.journal.events(
                Filter(trigger=trigger, event=str(number), limit=100)
            )
            assert kept.runs in [stored.runs for stored in found]
    return model


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_random_redeliveries_are_what_a_dictionary_says(
    tmp_path: Path, full: bool, say: Say
) -> None:
    told = {"new": 0, "duplicate": 0, "conflict": 0}
    for seed in range(1000 if full else 25):
        try:
            model = await history(seed, tmp_path / str(seed))
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
        for name, count in model.told.items():
            told[name] += count
    say(f"redeliveries: {told}")
    assert all(told.values())
