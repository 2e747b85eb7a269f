"""All of: an event of each trigger, in any order, within a time: `all_of(a, b, within="10m")`.

The first event opens the window, the one that makes it whole fires it. Repeats join too.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, ClassVar, Literal

from turnout.service.domain.event import Event
from turnout.service.domain.trigger import Trigger

from .parts import Pattern, missing_words, pattern
from .window import Expire, Fire, Join, Kind, Member, OpenWindow, Step, WindowSettings

if TYPE_CHECKING:
    from turnout.service.domain.flow import Flow


class AllOf(Pattern):
    """A window that closes once each of its triggers has had an event."""

    __slots__ = ()

    kind: ClassVar[Kind] = "all_of"


def all_of(
    *triggers: Trigger,
    within: str | timedelta | None = None,
    per: Callable[[Event], Hashable] | None = None,
    on_timeout: Flow[..., object] | None = None,
) -> AllOf:
    """Start a run when events of several triggers have come, in any order, within a time.

    The run gets a list of all events that came, in the order in which they came: repeats of a
    trigger too. The time begins with the first one. What is not whole in time ends with a decision
    `expired`, which says what was there and what was missing.

    * `triggers`: two or more
    * `within`: in how much time, such as `"10m"`
    * `per`: a function of the event that returns a key; only events of the same key belong
      together, and an event whose key is None starts nothing
    * `on_timeout`: a flow that gets the list of what came when the rest has not come in time

    Raises `SetupError` for what cannot be meant.

    ```python
    from turnout import Event, all_of, event, flow, webhook


    @flow(
        on=all_of(
            event("order.placed"),
            webhook("/payments"),
            within="10m",
            per=lambda event: event.data["order"],
        )
    )
    async def ship(events: list[Event]) -> list[str]:
        return sorted(event.type for event in events)
    ```
    """
    return pattern(AllOf, triggers, within, per, on_timeout)


class AllOfRule:
    """Takes every event until each part is there."""

    when_full: Literal["expire"] = "expire"
    due_first = True

    def arrive(
        self, settings: WindowSettings, window: OpenWindow | None, member: Member
    ) -> Sequence[Step]:
        """Let the event join; fire if it is the last part that was missing."""
        if window is None:
            return (Join(member.at + settings.within),)
        joined = Join(window.due_at)
        is_whole = len(window.members.parts() | {member.part}) == len(settings.parts)
        return (joined, Fire()) if is_whole else (joined,)

    def due(self, settings: WindowSettings, window: OpenWindow, at: int) -> Sequence[Step]:
        """Expire: the rest has not come."""
        return (Expire(missing_words(settings, window)),)
