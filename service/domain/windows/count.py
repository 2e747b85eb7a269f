"""Count: so many events within a time: `count(webhook("/login-failed"), 5, "10m", per=…)`.

The time slides: at each event those that are older than `within` leave. The event that makes `n`
fires the window and uses up its members, so that the next event begins to count anew.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar, Literal

from turnout.service.domain.errors import SetupError
from turnout.service.domain.event import Event
from turnout.service.domain.trigger import Trigger

from .checks import key_question, members, one_trigger
from .parts import length_words, within_time
from .window import (
    Expire,
    Fire,
    Join,
    Kind,
    Member,
    OpenWindow,
    Postpone,
    Release,
    Step,
    WindowSettings,
)


@dataclass(frozen=True, slots=True)
class Count:
    """A window that closes once so many events have come within a time."""

    triggers: tuple[Trigger, ...]
    settings: WindowSettings
    per: Callable[[Event], Hashable] | None = None
    kind: ClassVar[Kind] = "count"
    on_timeout: ClassVar[None] = None


def count(
    trigger: Trigger,
    n: int,
    /,
    within: str | timedelta | None = None,
    *,
    per: Callable[[Event], Hashable] | None = None,
) -> Count:
    """Start a run each time `n` events have come within any stretch of time of a length.

    The run gets a list of exactly `n` events, which no later run counts again. An event that grows
    older than `within` before there are `n` starts nothing; its decision `expired` says so.

    * `trigger`: whose events count
    * `n`: how many, from 2 to 10,000
    * `within`: in how much time, such as `"10m"`
    * `per`: a function of the event that returns a key; each key counts by itself, and an event
      whose key is None does not count

    Raises `SetupError` for what cannot be meant.

    ```python
    from turnout import Event, count, flow, webhook


    @flow(on=count(webhook("/login-failed"), 5, "10m", per=lambda event: event.data["user"]))
    async def lock(failed: list[Event]) -> str:
        return f"{failed[0].data['user']} has failed {len(failed)} times"
    ```
    """
    over = one_trigger("count", trigger)
    needed = members("count", "n", n)
    if needed == 1:
        raise SetupError("count(…, 1, …): every event is one; write the trigger alone, or a count "
                         "of 2 or more")  # fmt: skip
    settings = WindowSettings(kind="count", count=needed, within=within_time("count", within))
    return Count((over,), settings, key_question("count", per))


class CountRule:
    """Fires with the n-th member that is young enough; older ones leave."""

    when_full: Literal["expire"] = "expire"
    due_first = False

    def arrive(
        self, settings: WindowSettings, window: OpenWindow | None, member: Member
    ) -> Sequence[Step]:
        """Let the aged members leave and the event join; fire if it makes the count."""
        if window is None:
            return (Join(member.at + settings.within),)
        cutoff = member.at - settings.within
        steps = _released(settings, window, cutoff)
        due_at = member.at + settings.within if window.due_at is None else window.due_at
        steps.append(Join(due_at))
        if window.members.count_after(cutoff) + 1 >= settings.count:
            steps.append(Fire())
        return steps

    def due(self, settings: WindowSettings, window: OpenWindow, at: int) -> Sequence[Step]:
        """Let the aged members leave, with one decision; look again when the others will be."""
        cutoff = at - settings.within
        if not window.members.count_after(cutoff):
            return (Expire(_words(settings, window.count)),)
        return (*_released(settings, window, cutoff), Postpone(at + settings.within))


def _released(settings: WindowSettings, window: OpenWindow, cutoff: int) -> list[Step]:
    oldest = window.members.oldest()
    if oldest is None or oldest > cutoff:
        return []
    return [Release(words=_words(settings, window.count), before=cutoff)]


def _words(settings: WindowSettings, found: int) -> str:
    return f"there were {found} of {settings.count} within {length_words(settings.within)}"
