"""A run that sleeps until an instant, and one that does nothing."""

from __future__ import annotations

from datetime import UTC, datetime

from turnout import flow, sleep, webhook


@flow(on=webhook("/sleep"))
async def sleeper(data: dict[str, float]) -> None:
    await sleep(datetime.fromtimestamp(data["until"], UTC) - datetime.now(UTC))


@flow(on=webhook("/nothing"))
async def nothing() -> None:
    pass
