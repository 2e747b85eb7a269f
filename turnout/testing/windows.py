"""Open windows as a test sees them, and triggers that always tell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from turnout.service.intake.emitter import TriggerEmitter
from turnout.service.journal.records import StoredWindow
from turnout.service.operate.windows import rule_words


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """An open window as a test sees it: `await service.pending()`.

    * `id`: the window's id
    * `flow`: the flow's name
    * `rule`: the window about as it is written, such as `count(event:failed, 5, "10m")`
    * `key`: what `per=` gave, None without it
    * `events`: how many events it has
    * `due_at`: when it closes by itself, in virtual time; None while it is suspended

    Raises nothing: it is a value.

    ```python
    from turnout import Event, all_of, event, flow
    from turnout.testing import serve, typed_event


    @flow(on=all_of(event("order"), event("payment"), within="10m"))
    async def ship(events: list[Event]) -> int:
        return len(events)


    async def test_an_order_waits_for_its_payment() -> None:
        async with serve(ship) as service:
            await service.emit(typed_event(event("order"), {"id": "7"}))
            (window,) = await service.pending()
            assert (window.flow, window.events) == ("ship", 1)
    ```
    """

    id: str
    flow: str
    rule: str
    key: str | None
    events: int
    due_at: datetime | None


def pending_of(window: StoredWindow) -> Pending:
    """Return an open window as a test sees it."""
    return Pending(
        id=window.id,
        flow=window.flow,
        rule=rule_words(window.settings),
        key=window.key or None,
        events=window.members,
        due_at=window.due_at,
    )


def have_listened(emitters: Iterable[TriggerEmitter]) -> None:
    """Have triggers report that they listen and have told everything: in a test nothing is missed.

    An absence is told at its deadline, but for the minute after a restart.
    """
    for emitter in emitters:
        if not emitter.status.listens and not emitter.status.paused:
            emitter.up()
        if emitter.parts.tells_progress:
            emitter.up_to_date()
