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
    """Start one run of a burst of events, once none has come for `period`.

    The run starts at the latest `max` after the first event, by default ten periods. With
    `per=lambda event: …` each key has a window of its own; an event whose key is None waits for
    nobody and runs alone. The flow gets the data of the last event, or with `keep="all"` a list of
    all; every event is linked to the run either way. A run that has started is never changed by a
    late event: that one opens a new window. Raises `SetupError` for what cannot be meant.
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
