"""Debounce: of a burst of events one run, once it has been quiet: `debounce(webhook("/x"), "5s")`.

The first event opens a window; each later one moves its deadline to its own acceptance plus the
period, never past the first one's plus `max`. The run is `scheduled` from the first event on. An
event that comes after the deadline opens the next window.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

from turnout.service.domain.errors import SetupError
from turnout.service.domain.event import Event
from turnout.service.domain.trigger import Trigger

from .checks import duration, key_question, one_trigger
from .window import Fire, Join, Keep, Kind, Member, OpenWindow, Step, WhenFull, WindowSettings

_LONGEST_PERIODS = 10


@dataclass(frozen=True, slots=True)
class Debounce:
    """A window that closes when no event has come for a period."""

    triggers: tuple[Trigger, ...]
    settings: WindowSettings
    per: Callable[[Event], Hashable] | None = None
    kind: ClassVar[Kind] = "debounce"
    on_timeout: ClassVar[None] = None


def debounce(
    trigger: Trigger,
    period: str | timedelta,
    /,
    *,
    max: str | timedelta | None = None,
    per: Callable[[Event], Hashable] | None = None,
    keep: Keep = "last",
) -> Debounce:
    """Start one run for a burst of events, once none has come for a period.

    The first event opens a window and schedules its run; each later one puts the deadline off.
    Every event is linked to the run, whatever `keep` says. A run that has started is never changed
    by a late event: that one opens the next window. An open window outlives restarts.

    * `trigger`: whose events are collected
    * `period`: how long it must be quiet, such as `"5s"`
    * `max`: when the run starts at the latest after the first event; ten periods by default
    * `per`: a function of the event that returns a key; each key has a window of its own, and an
      event whose key is `None` runs alone at once
    * `keep`: `"last"`, and the flow gets the data of the last event, or `"all"` for a list

    Raises `SetupError` for what cannot be meant.

    ```python
    from turnout import debounce, flow, webhook


    @flow(on=debounce(webhook("/saved"), "5s", per=lambda event: event.data["page"]))
    async def index(page: dict[str, str]) -> str:
        return page["page"]
    ```
    """
    over = one_trigger("debounce", trigger)
    length = duration("debounce", "period", period)
    longest = length * _LONGEST_PERIODS if max is None else duration("debounce", "max", max)
    if longest <= length:
        raise SetupError(
            f"debounce({period!r}, max={max!r}): max is longer than the period, else no event "
            "could put off the run; leave it out for ten periods"
        )
    chosen: Any = keep
    if chosen not in ("last", "all"):
        raise SetupError(f'debounce(keep={keep!r}): write keep="last" or keep="all"')
    settings = WindowSettings(kind="debounce", period=length, longest=longest, keep=keep)
    return Debounce((over,), settings, key_question("debounce", per))


class DebounceRule:
    """Puts the deadline off at every event."""

    when_full: ClassVar[WhenFull] = "fire"
    due_first = True

    def arrive(
        self, settings: WindowSettings, window: OpenWindow | None, member: Member
    ) -> Sequence[Step]:
        """Let the event join, and wait for another period."""
        opened_at = member.at if window is None else window.opened_at
        return (Join(min(member.at + settings.period, opened_at + settings.longest)),)

    def due(self, settings: WindowSettings, window: OpenWindow, at: int) -> Sequence[Step]:
        """Fire: it has been quiet, or has been put off for long enough."""
        return (Fire(),)
