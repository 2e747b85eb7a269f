"""Absent: an event that does not come in time: `absent(done, "2h", after=cron("0 3 * * *"))`.

With `after=` its events open the window. Without it the window opens when the flow is first served,
and again with each event that was waited for. The deadline fires it, unless the event comes before;
it is put off while nobody could have told (`intake/absence.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar, Literal

from turnout.service.domain.event import Event
from turnout.service.domain.trigger import Trigger

from .checks import key_question, one_trigger
from .parts import several_triggers, within_time
from .window import (
    Close,
    Fire,
    Ignore,
    Join,
    Kind,
    Member,
    Open,
    OpenWindow,
    Postpone,
    Step,
    WindowSettings,
)

ABSENT = "turnout.absent"
"""The type of the event of a window that fires without a member."""

AWAITED = 0
"""The part of the event that is waited for; the other part is that of `after=`."""


@dataclass(frozen=True, slots=True)
class Absent:
    """A window that an event closes, and that fires if it does not come in time."""

    triggers: tuple[Trigger, ...]
    settings: WindowSettings
    per: Callable[[Event], Hashable] | None = None
    kind: ClassVar[Kind] = "absent"
    on_timeout: ClassVar[None] = None


def absent(
    trigger: Trigger,
    /,
    within: str | timedelta | None = None,
    *,
    after: Trigger | None = None,
    per: Callable[[Event], Hashable] | None = None,
) -> Absent:
    """Start a run when no event of a trigger has come within a time.

    With `after=` the time begins with an event of that trigger, and the run gets that event. While
    it is running, further ones join and change nothing. Without `after=` the time begins when the
    flow is first served and again with each event of `trigger`, and the run gets no data: the flow
    takes no parameter, or an `Event`. The run starts once; the next one needs another event.

    The time stands still while `trigger` is paused, down, or behind its source, since then nobody
    can tell whether the event has come. After a start of the service, an event that is sent to it
    has a minute to come.

    * `trigger`: whose event is waited for
    * `within`: for how long, such as `"2h"`
    * `after`: the trigger whose event begins the time, such as `cron("0 3 * * *")`
    * `per`: a function of the event that returns a key; each key is waited for by itself

    Raises `SetupError` for what cannot be meant.

    ```python
    from turnout import absent, cron, event, flow


    @flow(on=absent(event("backup.done"), "2h", after=cron("0 3 * * *")))
    async def alarm() -> str:
        return "the backup of tonight did not come"
    ```
    """
    if after is None:
        parts: tuple[Trigger, ...] = (one_trigger("absent", trigger),)
    else:
        parts = several_triggers("absent", (trigger, after))
    settings = WindowSettings(
        kind="absent",
        within=within_time("absent", within),
        parts=tuple(each.name for each in parts),
    )
    return Absent(parts, settings, key_question("absent", per))


class AbsentRule:
    """Fires at the deadline, unless the event that is waited for comes before the firing."""

    when_full: Literal["ignore"] = "ignore"
    due_first = False

    def arrive(
        self, settings: WindowSettings, window: OpenWindow | None, member: Member
    ) -> Sequence[Step]:
        """Close the window with the event that is waited for; open it with one of `after=`."""
        due_at = member.at + settings.within
        if member.part != AWAITED:
            return (Join(due_at if window is None else window.due_at),)
        if len(settings.parts) == 1:
            came = Ignore("it came, and the next one is waited for")
            return (came, Open(due_at) if window is None else Postpone(due_at))
        if window is None:
            return (Ignore(f"no event of {settings.parts[1]} waits for it"),)
        return (Ignore("it came in time"), Close(f"an event of {settings.parts[AWAITED]} came"))

    def due(self, settings: WindowSettings, window: OpenWindow, at: int) -> Sequence[Step]:
        """Fire: it has not come."""
        return (Fire(),)
