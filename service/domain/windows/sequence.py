"""Sequence: one event after the other within a time: `sequence(order, payment, within="10m")`.

The first part opens the window, the last one fires it. A repeated first part begins it anew. An
event whose turn it is not starts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, ClassVar, Literal

from turnout.service.domain.event import Event
from turnout.service.domain.trigger import Trigger

from .parts import Pattern, missing_words, pattern
from .window import (
    Expire,
    Fire,
    Ignore,
    Join,
    Kind,
    Member,
    OpenWindow,
    Release,
    Step,
    WindowSettings,
)

if TYPE_CHECKING:
    from turnout.service.domain.flow import Flow


class Sequenced(Pattern):
    """A window that closes once its triggers have each had an event, one after the other."""

    __slots__ = ()

    kind: ClassVar[Kind] = "sequence"


def sequence(
    *triggers: Trigger,
    within: str | timedelta | None = None,
    per: Callable[[Event], Hashable] | None = None,
    on_timeout: Flow[..., object] | None = None,
) -> Sequenced:
    """Start a run when events of several triggers have come one after the other, within a time.

    The run gets a list with one event of each trigger, in their order. The time begins with the
    first event; another event of the first trigger takes its place and begins it anew. Of the
    other triggers the first event counts whose turn it is. A sequence that is not whole in time
    ends with a decision `expired`, which says what was there and what was missing.

    * `triggers`: two or more, in the order in which their events have to come
    * `within`: in how much time, such as `"10m"`
    * `per`: a function of the event that returns a key; only events of the same key make a
      sequence, and an event whose key is None starts nothing
    * `on_timeout`: a flow that gets the list of what came when the rest has not come in time

    Raises `SetupError` for what cannot be meant.

    ```python
    from turnout import Event, event, flow, sequence


    @flow
    async def remind(started: list[Event]) -> str:
        return f"{started[0].data['cart']} was left"


    @flow(
        on=sequence(
            event("cart.filled"),
            event("cart.paid"),
            within="2h",
            per=lambda event: event.data["cart"],
            on_timeout=remind,
        )
    )
    async def ship(events: list[Event]) -> str:
        filled, paid = events
        return f"{filled.data['cart']} was paid at {paid.time}"
    ```
    """
    return pattern(Sequenced, triggers, within, per, on_timeout)


class SequenceRule:
    """Takes the next part only; the first part begins anew."""

    when_full: Literal["expire"] = "expire"
    due_first = True

    def arrive(
        self, settings: WindowSettings, window: OpenWindow | None, member: Member
    ) -> Sequence[Step]:
        """Let the event join if it is its turn; fire with the last part."""
        names, part = settings.parts, member.part
        present = set() if window is None else set(window.members.parts())
        if part == 0:
            replaced = f"a later event of {names[0]} has taken its place"
            released = (Release(words=replaced, part=each) for each in sorted(present))
            return (*released, Join(member.at + settings.within))
        if window is None or part > len(present):
            return (Ignore(f"it came before an event of {names[len(present)]}"),)
        if part < len(present):
            return (Ignore(f"an event of {names[part]} was there before it"),)
        joined = Join(window.due_at)
        return (joined, Fire()) if part == len(names) - 1 else (joined,)

    def due(self, settings: WindowSettings, window: OpenWindow, at: int) -> Sequence[Step]:
        """Expire: the rest has not come."""
        return (Expire(missing_words(settings, window)),)
